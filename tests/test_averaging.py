"""What is judged and kept is the average of the last steps' weights; training goes on from the last."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_training import Losses, data_of, lm, module_of, moods, trainer_of
from torch import Tensor

from ptlit.callbacks.averaging import Averaging
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake

__all__ = ["lm", "moods"]  # fixtures

STEPS = 12


class Steps(L.Callback):
    """The weights after every step, and what they are while they are judged."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.judged: dict[int, dict[str, Tensor]] = {}
        self.losses: dict[int, float] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.after = [weights(module)]

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *batch: Any) -> None:
        self.after.append(weights(module))

    def on_validation_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *batch: Any) -> None:
        self.judged[trainer.global_step] = weights(module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.losses[trainer.global_step] = trainer.callback_metrics["val/loss"].item()


def weights(module: L.LightningModule) -> dict[str, Tensor]:
    learned = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return {name: value.detach().clone() for name, value in learned.items()}


def average(steps: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """By the definition of an exponential moving average, in float64."""
    found = {name: value.double() for name, value in steps[0].items()}
    for count, step in enumerate(steps[1:], start=1):
        kept = min(decay, (1 + count) / (4 + count))
        found = {name: kept * found[name] + (1 - kept) * value.double() for name, value in step.items()}
    return found


def fitted(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    folder: Path,
    *callbacks: L.Callback,
    method: str = "ptuning_mlp",
) -> tuple[L.LightningModule, list[float]]:
    data, losses = data_of(lm, moods), Losses()
    module = module_of(lm, data, method)
    best = ModelCheckpoint(dirpath=folder, filename="best", monitor="val/loss")
    trainer = trainer_of(
        folder,
        *(losses, *callbacks, best),
        max_steps=STEPS,
        val_check_interval=6,
        check_val_every_n_epoch=None,
    )
    torch.manual_seed(5)
    trainer.fit(module, data)
    return module, losses.seen


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(one[name].double(), other[name].double(), atol=1e-6) for name in other)


@pytest.mark.parametrize("decay", [0.6, 0.95])
def test_it_is_the_average_of_the_steps(lm: FrozenLM, moods: Path, tmp_path: Path, decay: float) -> None:  # noqa: F811
    steps = Steps()
    module, _ = fitted(lm, moods, tmp_path, steps, Averaging(decay))
    assert len(steps.after) == STEPS + 1
    for step in (6, STEPS):
        assert close(steps.judged[step], average(steps.after[: step + 1], decay))
        assert not close(steps.judged[step], steps.after[step])
    assert close(weights(module), average(steps.after, decay))  # who trains by hand has it too
    best = min(steps.losses, key=lambda step: steps.losses[step])
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[name], value) for name, value in steps.judged[best].items())


def test_training_does_not_notice(lm: FrozenLM, moods: Path, tmp_path: Path) -> None:  # noqa: F811
    without, losses = fitted(lm, moods, tmp_path / "without")
    _, averaged = fitted(lm, moods, tmp_path / "averaged", Averaging())
    assert averaged == losses
    last, _ = fitted(lm, moods, tmp_path / "last", Averaging(decay=0))
    assert all(torch.equal(value, weights(without)[name]) for name, value in weights(last).items())


def test_the_lm_is_not_copied(lm: FrozenLM, moods: Path, tmp_path: Path) -> None:  # noqa: F811
    before = copy.deepcopy(lm.model.state_dict())
    averaging = Averaging()
    seen: list[set[str]] = []

    class Look(L.Callback):
        def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            seen.append(set(averaging._average))

    module, _ = fitted(lm, moods, tmp_path, averaging, Look(), method="prefix_tuning")
    assert seen == [set(weights(module))]
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(UserMistake, match="callbacks.averaging.decay="):
        Averaging(decay)
