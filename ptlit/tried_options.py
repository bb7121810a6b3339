"""Options tried on what they configure: many a mistake is known to a constructor alone, and calling it with
stand-ins reads and allocates nothing.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, Literal

from ptlit.mistake import UserMistake
from ptlit.signature import LATER

Options = dict[str, Any]

HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")

WORDS = {"optim": {"lr": Literal["auto"]}}  # a word that ptlit itself puts a value in the place of


def objections(path: str, node: Any, found: Sequence[str]) -> list[str]:
    """Of a part of the config, besides what was `found` already."""
    wrong = {re.split(r"[=\s]", mistake, maxsplit=1)[0].rpartition(".")[2] for mistake in found}
    if not isinstance(node, dict) or "_target_" not in node or "_target_" in wrong:
        return []
    apart = {*HYDRA_KEYS, "init", *wrong}
    apart |= {key for key in WORDS.get(path, {}) if isinstance(node.get(key), str)}
    options = {key: value for key, value in node.items() if key not in apart and value is not LATER}
    if path == "schedule":
        return [] if found else objections_of_a_schedule(resolve_name(node["_target_"]), options)
    stand_ins = stand_ins_of(path)
    if stand_ins is None:
        return []
    return objections_of_a_constructor(path, resolve_name(node["_target_"]), stand_ins, options)


def stand_ins_of(path: str) -> Options | None:
    """What the program itself hands over; None where more is needed than can stand in."""
    import torch

    from ptlit.lm import LMShape

    alone = ("benchmark", "lora", "loss", "distill")
    known: dict[str, Options] = {
        "data": {"tokenizer": None},
        "prompt": {"shape": LMShape(64, 2, 2, 32, None)},
        "optim": {"params": [torch.nn.Parameter(torch.empty(1))]},
    }
    return {} if path in alone else known.get(path)


def objections_of_a_schedule(target: Callable[..., Any], options: Options) -> list[str]:
    import torch

    from ptlit.schedule import made

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    try:
        made(functools.partial(target, **options), optimizer, num_training_steps=10)
    except UserMistake as mistake:
        return [str(mistake)]
    except Exception:  # it looks at more of the optimizer than there is here
        return []
    return []


def objections_of_a_constructor(
    path: str, target: Callable[..., Any], stand_ins: Options, options: Options
) -> list[str]:
    """It stops at its first. Leave out the option that this is about, and listen for the next."""
    import torch

    def objection(options: Mapping[str, Any]) -> str | None:
        try:
            with torch.device("meta"):
                target(**stand_ins, **options)
        except UserMistake as mistake:
            return str(mistake)
        except ValueError as error:
            return f"{path}: {' '.join(str(error).split()).rstrip('.')}."
        except Exception:  # it wants more than stand-ins, which says nothing about the config
            return None
        return ""

    mistakes = []
    while complaint := objection(options):
        mistakes.append(complaint)
        cures = [key for key in options if objection(without(options, key)) not in (complaint, None)]
        if not cures:
            break
        options = without(options, cures[0])
    return mistakes


def without(options: Mapping[str, Any], key: str) -> Options:
    return {name: value for name, value in options.items() if name != key}
