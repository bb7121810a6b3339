"""A run killed at any moment and resumed ends as if nothing had happened."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_training import Losses, data_of, lm, module_of, moods, trainer_of

from ptlit.callbacks.advice import Advice
from ptlit.callbacks.averaging import Averaging
from ptlit.callbacks.finite import Finite
from ptlit.callbacks.last_checkpoint import LastCheckpoint
from ptlit.callbacks.random_state import RandomState
from ptlit.lm import FrozenLM
from ptlit.loss import Loss

__all__ = ["lm", "moods"]  # fixtures


MORE_SIGNAL = {
    "loss": Loss(label_weight=1.0, label_smoothing=0.1),
    "kl_weight": 0.1,
    "drop_virtual_tokens": 0.3,
}


class Killed(LastCheckpoint):
    """Keeps all that a kill after each checkpoint would have left."""

    state_key = LastCheckpoint.__name__

    def _save(self, trainer: L.Trainer) -> None:
        super()._save(trainer)
        folder = self.path.parent
        left = folder.with_name(f"killed{len(list(folder.parent.glob('killed*'))):02}")
        shutil.copytree(folder, left)


class Validations(L.Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.seen.append((trainer.global_step, trainer.callback_metrics["val/loss"].item()))


@pytest.mark.parametrize(
    ("method", "accumulate", "val_check_interval", "data_options", "options"),
    [
        ("ptuning_v2", 1, 10, {}, {}),  # dropout; 96 rows: an epoch is 12 batches, the run almost two
        ("ptuning_v2", 1, 7, {"max_tokens": 128, "num_workers": 1}, {}),
        ("ptuning_lstm", 2, 10, {}, {}),
        ("prompt_tuning", 3, 10, {"by_length": False}, {}),  # validations amid accumulated gradients
        ("ptuning_mlp", 1, 10, {"drop_words": 0.3}, MORE_SIGNAL),
        ("prefix_projection", 1, 10, {}, {"members": 2, "drop_virtual_tokens": 0.3}),
    ],
)
def test_killed_at_any_moment(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    method: str,
    accumulate: int,
    val_check_interval: int,
    data_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    def run(folder: Path, last: LastCheckpoint, seed: int) -> dict[str, Any]:
        losses, validations = Losses(), Validations()
        best = ModelCheckpoint(
            dirpath=folder, filename="best", monitor="val/loss", enable_version_counter=False
        )
        data = data_of(lm, moods, **data_options)
        module = module_of(lm, data, method, **options)
        trainer = trainer_of(
            folder,
            *(losses, validations, RandomState(), Averaging(), Finite(), Advice(), best, last),
            accumulate_grad_batches=accumulate,
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=None,
            max_steps=23,
        )
        torch.manual_seed(seed)
        resume = str(last.path) if last.path.exists() else None
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        kept = torch.load(folder / "best.ckpt", weights_only=True)
        return {
            "losses": losses.seen,
            "validations": validations.seen,
            "best": [value.tolist() for value in kept["state_dict"].values()],
            "validated": kept["validated"],
            "prompts": [prompt.eval()().tolist() for prompt in module.prompts],
        }

    whole = run(tmp_path / "whole", Killed(str(tmp_path / "whole"), every_n_train_steps=5), seed=5)
    killed = sorted(tmp_path.glob("killed*"))
    assert len(killed) >= 5
    for folder in killed:
        rest = run(folder, LastCheckpoint(str(folder), every_n_train_steps=5), seed=99)
        for series in ("losses", "validations"):
            count = len(rest[series])
            assert rest[series] == whole[series][len(whole[series]) - count :], (folder.name, series)
        assert all(rest[name] == whole[name] for name in ("prompts", "best", "validated")), folder.name
