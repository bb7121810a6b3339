"""A loss or gradient that is no number ends a run in one sentence; what was saved before can be used."""

import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from runs import TRAINING, call, train_at
from test_training import data_of, lm, module_of, moods, trainer_of
from transformers import get_scheduler

from ptlit.callbacks.averaging import Averaging
from ptlit.callbacks.finite import Finite
from ptlit.callbacks.last_checkpoint import LastCheckpoint
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.train import main

__all__ = ["lm", "moods"]  # fixtures

SENTENCE = r"^(The loss|A gradient) of step \d+ is (nan|-?inf): lower optim.lr \(now 1e\+3\d\) or .*\.$"


def broken_from(step: int) -> L.Callback:
    """From that step on, counted from 1, every gradient of the prompt is NaN."""

    class Breaks(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
            if trainer.global_step + 1 >= step:
                next(module.prompted_lm.prompt.parameters()).grad.fill_(float("nan"))

    return Breaks()


class Rates(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def values(checkpoint: Path) -> torch.Tensor:
    """Of the average, which is what a checkpoint is opened for, and of the last step."""
    kept = torch.load(checkpoint, weights_only=True)
    return torch.cat([value.flatten() for part in ("state_dict", "walking") for value in kept[part].values()])


def test_a_rate_far_too_high_and_the_way_back(
    trained_deep: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained_deep, place / "astray"))
    before = {name: values(folder / "checkpoints" / f"{name}.ckpt") for name in ("best", "last")}
    with pytest.raises(SystemExit) as end:
        train_at(place, "astray", "resume=astray", "optim.lr=1e30", "trainer.max_steps=40")
    assert re.match(SENTENCE, str(end.value.code))
    assert f"resume={folder} optim.lr=<a lower one>" in capfd.readouterr().out
    for name, was in before.items():
        now = values(folder / "checkpoints" / f"{name}.ckpt")
        assert now.isfinite().all() and torch.equal(now, was)
    (folder / "metrics.json").unlink()
    train_at(place, "astray", "resume=astray", "optim.lr=0.01", "trainer.max_steps=12")
    assert values(folder / "checkpoints" / "last.ckpt").isfinite().all()
    assert (folder / "metrics.json").is_file()


def test_a_sweep_goes_on(place: Path) -> None:
    words = [f"model.name_or_path={place}/lm", "experiment=prefix_tuning", "optim.lr=1e30,1e31"]
    with pytest.raises(SystemExit) as end:
        call(place, main, "-m", *TRAINING, *words, "hydra.sweep.dir=finite_sweep")
    assert end.value.code == 1
    said = [path.read_text().strip() for path in sorted((place / "finite_sweep").glob("*/error.txt"))]
    assert len(said) == 2 and all(re.match(SENTENCE, each) for each in said)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_takes_the_rate_it_is_told(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    accumulate: int,
) -> None:
    """As the schedule has it that was never told of another."""
    path, data = tmp_path / "last.ckpt", data_of(lm, moods)
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    options |= {"enable_checkpointing": True}
    trainer = trainer_of(tmp_path, LastCheckpoint(str(tmp_path)), **options)
    trainer.fit(module_of(lm, data, lr=0.02), data)
    last, rates = LastCheckpoint(str(tmp_path / "on")), Rates()
    trainer = trainer_of(tmp_path, last, rates, **options, max_steps=30)
    trainer.fit(module_of(lm, data, lr=0.004), data, ckpt_path=path, weights_only=True)
    alone = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.004)
    never_told = get_scheduler("cosine", alone, num_warmup_steps=2, num_training_steps=30)
    # The rate of the first step stands in the checkpoint, worked out for an end at step 24: there it was 0.
    assert rates.seen == [0.0, *(0.004 * never_told.lr_lambdas[0](step) for step in range(25, 30))]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_stops_before_anything_is_saved(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    accumulate: int,
) -> None:
    data = data_of(lm, moods)
    keepers = [
        LastCheckpoint(str(tmp_path), every_n_train_steps=1),
        ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1),
    ]
    callbacks = [broken_from(4), Averaging(), Finite(), *keepers]
    trainer = trainer_of(tmp_path, *callbacks, accumulate_grad_batches=accumulate)
    with pytest.raises(UserMistake, match=r"A gradient of step 4 is nan: lower optim.lr \(now 0.02\)"):
        trainer.fit(module_of(lm, data), data)
    kept = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert kept == ["last.ckpt", "step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]
    assert all(values(path).isfinite().all() for path in tmp_path.glob("*.ckpt"))


def test_a_weight_that_is_no_number_is_not_saved(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Though it comes of a step whose loss and gradient are numbers."""

    class Overflows(L.Callback):
        @torch.no_grad()
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *batch: Any) -> None:
            if trainer.global_step == 3:
                next(module.prompted_lm.prompt.parameters()).fill_(torch.inf)

    data = data_of(lm, moods)
    last = LastCheckpoint(str(tmp_path), every_n_train_steps=1)
    trainer = trainer_of(tmp_path, Overflows(), Averaging(), Finite(), last, enable_checkpointing=True)
    with pytest.raises(UserMistake, match=r"A weight after step 3 is not finite: lower optim.lr"):
        trainer.fit(module_of(lm, data), data)
    assert values(last.path).isfinite().all()
    assert torch.load(last.path, weights_only=True)["global_step"] == 2


def test_before_anything_is_learned_the_rate_is_not_to_blame(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = data_of(lm, moods)
    module = module_of(lm, data)
    with torch.no_grad():
        module.prompted_lm.prompt.embedding.weight.fill_(torch.inf)
    sentence = r"The loss of step 1 is nan, before anything is learned: give another prompt.init.from."
    with pytest.raises(UserMistake, match=sentence):
        trainer_of(tmp_path, Finite()).fit(module, data)


def fp16(init_scale: float) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
def test_a_gradient_scaler_may_go_too_far(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    data, precision = data_of(lm, moods), fp16(2.0**24)
    module = module_of(lm, data)
    start = values_of(module)
    trainer_of(tmp_path, Finite(), plugins=[precision], max_steps=24).fit(module, data)
    assert precision.scaler.get_scale() < 2.0**24  # it met infinite gradients
    assert values_of(module).isfinite().all() and not torch.equal(values_of(module), start)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
def test_a_gradient_scaler_that_never_comes_to_an_end(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = data_of(lm, moods)
    trainer = trainer_of(tmp_path, broken_from(1), Finite(), plugins=[fp16(2.0**16)], max_steps=60)
    with pytest.raises(
        UserMistake, match=r"A gradient of step .* trainer.precision=32-true \(now 16-mixed\)"
    ):
        trainer.fit(module_of(lm, data), data)


def values_of(module: L.LightningModule) -> torch.Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()]).clone()


def test_an_lm_that_lets_no_gradient_through(lm: FrozenLM, moods: Path, tmp_path: Path) -> None:
    class CutsOff(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
            for parameter in module.prompted_lm.prompt.parameters():
                parameter.grad.zero_()

    data, trainer = data_of(lm, moods), trainer_of(tmp_path, CutsOff(), Finite(), max_steps=3)
    with pytest.raises(UserMistake, match="^No gradient comes back through the LM: .* model.name_or_path.$"):
        trainer.fit(module_of(lm, data), data)
    assert trainer.global_step == 1
