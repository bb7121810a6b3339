"""optim.lr=auto: what it chooses, and that a run with that number is the very same run."""

import functools
import json
import math
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from methods import METHODS
from runs import TRAINING, call, train_at
from test_training import Losses, data_of, lm, module_of, moods, trainer_of

from ptlit.learning_rate import BATCHES, RATES, find_learning_rate, has_gone_too_far, suggestion
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.train import main

__all__ = ["lm", "moods"]  # fixtures


def test_twice_the_rate_that_goes_nine_tenths_of_the_way_down() -> None:
    rates = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    assert suggestion(rates, (3.0, 3.0, 1.1, 1.0, 4.0)) == pytest.approx(
        1.8e-2
    )  # 0.95 of a decade above 1e-3
    assert suggestion(rates, (3.0, 1.1, 1.0, 1.0, 4.0)) == pytest.approx(1.8e-3)
    assert suggestion(rates, (3.0, 3.0, 1.0, 4.0)) == pytest.approx(1e-2)  # at most that of the lowest loss
    assert suggestion(rates, (2.0, 1.0, math.nan)) == pytest.approx(1e-3)
    with pytest.raises(UserMistake, match="give optim.lr a number"):
        suggestion(rates, (3.0, 3.5))


def test_it_ends_with_the_rate_that_destroys_the_prompt() -> None:
    assert not has_gone_too_far([3.0])
    assert not has_gone_too_far([3.0, 2.99, 3.01])  # next to nothing was won
    assert not has_gone_too_far([3.0, 1.0, 1.9])
    assert has_gone_too_far([3.0, 1.0, 2.1])
    assert has_gone_too_far([3.0, 3.4])
    assert has_gone_too_far([3.0, math.nan])


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [*((each, torch.optim.AdamW) for each in METHODS), ("prefix_tuning", torch.optim.Adafactor)],
)
def test_the_run_that_follows_is_the_one_with_that_number(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    method: str,
    optimizer: type[torch.optim.Optimizer],
) -> None:
    """Prompt, place in the data, random numbers (two of the methods draw some) and trainer are as before."""

    def losses(rate: float | None) -> tuple[list[float], float]:
        data, seen = data_of(lm, moods), Losses()
        module = module_of(lm, data, method)
        trainer = trainer_of(tmp_path, seen, max_steps=4, accumulate_grad_batches=2)
        torch.manual_seed(5)
        if rate is None:
            make = functools.partial(optimizer, lr="auto")
            rate = find_learning_rate(module, data, make, trainer, tmp_path / "rate.png")
        module.make_optimizer = functools.partial(optimizer, lr=rate)
        trainer.fit(module, data)
        return seen.seen, rate

    found, rate = losses(None)
    assert RATES[0] < rate <= RATES[-1]
    assert losses(rate)[0] == found
    assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_first_training_batches_decide(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Neither val nor test is read, and the means are those of the same few batches."""
    data = data_of(lm, moods)
    for split in ("val", "test"):
        del data.encoded[split]
    module = module_of(lm, data)
    seen: list[list[int]] = []
    whole = module.losses

    def noting(batch):  # type: ignore[no-untyped-def]
        seen.append(batch["row"].tolist())
        return whole(batch)

    module.losses = noting  # type: ignore[method-assign]
    make = functools.partial(torch.optim.AdamW)
    find_learning_rate(module, data, make, trainer_of(tmp_path), tmp_path / "rate.png")
    assert len(seen) <= BATCHES * len(RATES) and len(seen) % BATCHES == 0
    assert all(rows == seen[i % BATCHES] for i, rows in enumerate(seen))
    assert seen[:BATCHES] == [batch["row"].tolist() for batch in islice(data.train_dataloader(), BATCHES)]


def test_the_command_keeps_the_number(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train_at(place, "auto", "experiment=prompt_tuning", "optim.lr=auto")
    rate = yaml.safe_load((folder / "config.yaml").read_text())["optim"]["lr"]
    assert f"optim.lr=auto is {rate:g} here: auto/learning_rate.png" in capsys.readouterr().out
    assert json.loads((folder / "metrics.json").read_text())["learning_rate/chosen"] == rate
    picture = (folder / "learning_rate.png").read_bytes()
    call(place, main, "resume=auto", "trainer.max_steps=12")
    assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["lr"] == rate
    assert (folder / "learning_rate.png").read_bytes() == picture
    assert "optim.lr=auto is" not in capsys.readouterr().out


def test_a_sweep_said_again_finds_its_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "experiment=prompt_tuning",
        "optim.lr=auto",
        "hydra.sweep.dir=autos",
        "prompt.num_virtual_tokens=2,3",
    ]
    words = ["-m", *TRAINING, "model.name_or_path=lm", "trainer.max_steps=2", *words]
    call(place, main, *words)
    assert capsys.readouterr().out.count("optim.lr=auto is") == 2
    call(place, main, *words)
    assert "optim.lr=auto is" not in capsys.readouterr().out
