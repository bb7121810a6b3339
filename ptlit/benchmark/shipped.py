"""What training would do if it were told no more than the experiment: the defaults that users get."""

from hydra import compose

from ptlit.benchmark.trial import Recipe
from ptlit.build import options_of

PARTS = ("prompt", "optim", "schedule", "trainer", "loss")


def shipped(method: str) -> Recipe:
    """Of the experiment with the method's name."""
    cfg = compose("train", [f"experiment={method}"])
    recipe: Recipe = {part: options_of(cfg[part]) if cfg[part] else None for part in PARTS}
    recipe |= {"kl_weight": cfg.kl_weight, "drop_virtual_tokens": cfg.drop_virtual_tokens}
    recipe |= {"batch_size": cfg.data.batch_size}
    return recipe | {"averaging": options_of(cfg.callbacks.averaging)}
