"""A schedule of the learning rate, made and looked at: transformers offers more kinds than can be stepped
here, and some ask for options of their own.
"""

import inspect
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ptlit.mistake import UserMistake

OF_ONE_KIND = "scheduler_specific_kwargs"  # where transformers.get_scheduler has them


def made(make: Callable[..., LRScheduler], optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
    """By a part of the config, which has all but these two; PyTorch's own ask for the optimizer alone."""
    length = {"num_training_steps": num_training_steps} if "num_training_steps" in accepted(make) else {}
    try:
        schedule = make(optimizer=optimizer, **length)
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        where = f"; what one kind alone has stands in +schedule.{OF_ONE_KIND}={{...}}"
        raise UserMistake(f"schedule: {said}{where if OF_ONE_KIND in accepted(make) else ''}.") from error
    if "metrics" in accepted(schedule.step):
        raise UserMistake(
            f"schedule: {type(schedule).__name__} waits for validations, and here rates change with every "
            "step: choose schedule=linear, cosine or constant."
        )
    return schedule


def accepted(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)
