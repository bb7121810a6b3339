"""ptlit as `python -m ptlit.train` has it: its module in Lightning's Trainer, by an experiment's settings."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ptlit.benchmark.learners import AfterStep, Given, Learner
from ptlit.build import build_module, build_trainer, make
from ptlit.callbacks.averaging import Averaging
from ptlit.data import Batch
from ptlit.kept_memory import keep_freed_memory
from ptlit.prefix import Prefix
from ptlit.quiet import quiet

UNUSED = {  # by this benchmark, which judges by itself and keeps what is best
    "max_epochs": 1,
    "val_check_interval": 1.0,
    "check_val_every_n_epoch": 1,
    "limit_val_batches": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
}


class OwnLearner(Learner):
    def __init__(self, given: Given):
        assert given.recipe is not None
        quiet()
        keep_freed_memory()  # as the command does
        recipe: dict[str, Any] = dict(given.recipe)
        recipe["prompt"] = recipe["prompt"] | {"num_virtual_tokens": given.plan.num_virtual_tokens}
        recipe["trainer"] = recipe["trainer"] | UNUSED | {"max_steps": given.steps}
        self.cfg = OmegaConf.create(recipe)
        torch.manual_seed(given.trial.seed)
        self.model = self.module = build_module(self.cfg, given.lm, given.data)
        self.learned = {name: each for name, each in self.module.named_parameters() if each.requires_grad}
        self.averaging: Averaging = make(self.cfg.averaging)
        self.prefix: Prefix | None = None

    def fit(self, batches: Iterable[Batch], after_step: AfterStep) -> None:
        trainer = build_trainer(self.cfg, [self.averaging, StepByStep(after_step)], [])
        trainer.fit(self.module, train_dataloaders=batches)

    def as_kept(self) -> AbstractContextManager[None]:
        """The average of the last steps."""
        return self.averaging.in_place(self.module)

    def begin_judging(self) -> None:
        self.prefix = self.module.prompted_lm.prefix()

    def word_scores(self, ids: Tensor, mask: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
        return self.module.prompted_lm.label_scores(ids, mask, words, self.prefix)

    def logits(self, ids: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        return self.module.prompted_lm(ids, mask, keep, self.prefix)


class StepByStep(L.Callback):
    def __init__(self, after_step: AfterStep):
        self.after_step = after_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.after_step(float(outputs["loss"]), batch["row"].tolist())
