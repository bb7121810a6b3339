"""optim.lr=auto: a few steps at each of many rates on the same few training batches, before training.

Lightning's finder is not used: it gives every rate another batch, and here batches differ more than rates
(losses of 1.4 to 4.8 on four batches of tweets); it restores global generators no more than the place in the
data.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from ptlit.data import Batch, TextData
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.whole_file import replaced

AUTO = "auto"
BATCHES = 4
RATES = tuple(float(f"{10 ** (half / 2 - 5):.1e}") for half in range(10))  # two a decade: forty steps
LOST, RISEN = 0.5, 0.1  # of what was won, and of the first loss: the prompt is destroyed, here and further up
ENOUGH = 0.9  # of the way down
FALLING = 2.0  # how far a rate is above its mean in training


def find_learning_rate(
    module: SoftPromptModule,
    data: TextData[Any],
    make_optimizer: Callable[..., Optimizer],
    trainer: L.Trainer,
    picture: Path,
) -> float:
    """The rate that `trainer` is to train with; everything else is afterwards as it was before.

    Neither dropout nor accumulated gradients take part: both would only make the losses less alike.
    """
    state = {name: value.clone() for name, value in module.state_dict().items()}
    dropouts = [each for each in module.modules() if isinstance(each, nn.Dropout) and each.training]
    with isolate_rng():
        batches = list(islice(data.train_dataloader(), BATCHES))
        test = RangeTest(module, make_optimizer, len(batches))
        try:
            for dropout in dropouts:
                dropout.eval()
            like(trainer).fit(test, DataLoader(batches * len(RATES), batch_size=None))  # type: ignore[arg-type]
        finally:
            for dropout in dropouts:
                dropout.train()
            module.load_state_dict(state)
            module.zero_grad()
    rate = suggestion(RATES, test.means)
    plot(RATES, test.means, rate, picture)
    return rate


def like(trainer: L.Trainer) -> L.Trainer:
    """A trainer for the test alone: one process, and nothing is written."""
    return L.Trainer(
        accelerator="cpu" if trainer.strategy.root_device.type == "cpu" else "auto",
        devices=1,
        precision=trainer.precision,  # type: ignore[arg-type]
        max_epochs=1,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


class RangeTest(L.LightningModule):
    """Goes through the same batches at each rate, one rate after the other, from the lowest."""

    def __init__(self, module: SoftPromptModule, make_optimizer: Callable[..., Optimizer], batches: int):
        super().__init__()
        self.module = module
        self.make_optimizer = make_optimizer
        self.batches = batches
        self.means: list[float] = []  # of the losses at each rate
        self._losses: list[Tensor] = []  # at the rate under way

    def configure_optimizers(self) -> Optimizer:
        parameters: Iterable[nn.Parameter] = (p for p in self.module.parameters() if p.requires_grad)
        return self.make_optimizer(parameters, lr=RATES[0])

    def on_train_start(self) -> None:
        self._bar = tqdm(total=self.batches * len(RATES), desc="Learning rate", unit=" steps", leave=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = RATES[batch_idx // self.batches]
        total = self.module.losses(batch)["total"]
        self._losses.append(total.detach())
        return total

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._bar.update()
        if len(self._losses) == self.batches:
            self.means.append(torch.stack(self._losses).mean().item())
            self._losses = []
            self.trainer.should_stop = has_gone_too_far(self.means)

    def on_train_end(self) -> None:
        self._bar.close()


def has_gone_too_far(losses: Sequence[float]) -> bool:
    """What a destroyed prompt may come down to later would mislead."""
    first, lowest = losses[0], min(losses)
    return not losses[-1] <= lowest + max(LOST * (first - lowest), RISEN * first)  # NaN is not


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Twice the lowest rate that brings the loss down by nine tenths of what any does, as a falling schedule
    has half of its rate on average. No more than the rate of the lowest loss, though.

    The usual choice, where the loss falls most steeply, is too low here: it is where the LM learns to answer
    with a label at all. What it chooses beside what a search did: notebooks/how_well.md.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite or min(finite) >= losses[0]:
        raise UserMistake(
            f"optim.lr=auto: at none of the rates from {rates[0]:g} to {rates[-1]:g} does the loss of the "
            "first training batches fall: give optim.lr a number, or another prompt.init.from."
        )
    wanted = losses[0] - ENOUGH * (losses[0] - min(finite))
    reached = next(place for place, loss in enumerate(losses) if loss <= wanted)
    above, below = losses[reached - 1], losses[reached]
    share = (above - wanted) / (above - below)
    rate = rates[reached - 1] * (rates[reached] / rates[reached - 1]) ** share
    return float(f"{min(FALLING * rate, rates[losses.index(min(finite))]):.1e}")


def plot(rates: Sequence[float], losses: Sequence[float], rate: float, picture: Path) -> None:
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates[: len(losses)], losses, "o-", markersize=4)
    axes.axvline(rate, ls="--", lw=1, color="tab:orange", label=f"optim.lr={rate:g}")
    axes.set(title="loss of the same batches", xlabel="learning rate, rising", xscale="log")
    axes.legend()
    with replaced(picture) as part:
        figure.savefig(part, dpi=110)
