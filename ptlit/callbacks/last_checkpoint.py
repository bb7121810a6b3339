"""last.ckpt: what a run goes on from, after a kill at any moment, as if nothing had happened."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn


class LastCheckpoint(Checkpoint):
    """Saves between steps, where alone a checkpoint is exact: gradients half accumulated are in none.

    A step that a validation follows is saved after it, or a resumed run would leave the validation out.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 5):
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_train_steps = every_n_train_steps
        self._saved_step = 0
        self._step_at_start = 0
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        self._between_steps = trainer.global_step > self._step_at_start
        due = trainer.global_step - self._saved_step >= self.every_n_train_steps or _is_last_step(trainer)
        if self._between_steps and due and not _validation_follows(trainer):
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_at_start = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._between_steps and trainer.state.fn == TrainerFn.FITTING:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step > self._saved_step:
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"saved_step": self._saved_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved_step = state["saved_step"]

    def _save(self, trainer: L.Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)


def _is_last_step(trainer: L.Trainer) -> bool:
    """Afterwards Lightning counts the epoch as gone through, and the rest of it would be left out."""
    return trainer.received_sigterm or trainer.should_stop or trainer.global_step == trainer.max_steps


def _validation_follows(trainer: L.Trainer) -> bool:
    """Lightning's own answer; it has no public name."""
    batches = trainer.fit_loop._data_fetcher
    return batches is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(batches)
