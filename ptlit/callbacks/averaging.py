"""The average of the last steps' weights, which is what a run judges, keeps and exports.

A prompt learns from few examples at a high rate, so its weights walk about what they have found; their
average does not. It costs a copy of what is trained. The state_dict of a checkpoint holds the average, for
whoever opens it; the weights that training goes on from are kept beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ptlit.mistake import UserMistake


class Averaging(L.Callback):
    """An exponential moving average: `decay=0.97` reaches back some thirty steps, at the start over the last
    third of them.
    """

    def __init__(self, decay: float = 0.97):
        if not 0 <= decay < 1:
            raise UserMistake(
                f"callbacks.averaging.decay={decay} must be 0 (the last step alone) or more, below 1."
            )
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._walking: dict[str, Tensor] | None = None  # of a checkpoint that is gone on from
        self._steps = 0

    @torch.no_grad()
    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._average = {name: weight.clone() for name, weight in trained(module).items()}
        self._steps = trainer.global_step
        if self._walking is not None:
            for name, weight in trained(module).items():
                weight.copy_(self._walking[name])
            self._walking = None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:  # gradients are still accumulated
            return
        self._steps = trainer.global_step
        fresh = 1 - min(self.decay, (1 + self._steps) / (4 + self._steps))
        for name, weight in trained(module).items():
            self._average[name].lerp_(weight, fresh)

    @contextmanager
    def in_place(self, module: L.LightningModule) -> Iterator[None]:
        """The module is the average for a while, for those who judge it by themselves during training."""
        self._exchange(module)
        yield
        self._exchange(module)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._exchange(module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._exchange(module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._exchange(module)
        self._average = {}

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average:
            checkpoint["walking"] = trained(module)
            checkpoint["state_dict"] |= self._average

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._walking = checkpoint.get("walking")

    @torch.no_grad()
    def _exchange(self, module: L.LightningModule) -> None:
        if not self._average:  # Lightning's trial validation, before training starts
            return
        for name, weight in trained(module).items():
            kept = weight.clone()
            weight.copy_(self._average[name])
            self._average[name] = kept


def trained(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
