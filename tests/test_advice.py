"""What trainings hear that really go wrong, once each; the others hear nothing, and learn the same."""

import csv
import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from test_training import Losses, data_of, lm, module_of, moods, trainer_of
from tiny import tiny_lm

from ptlit.callbacks.advice import Advice
from ptlit.callbacks.last_checkpoint import LastCheckpoint
from ptlit.data import ClassificationData
from ptlit.lm import FrozenLM
from ptlit.module import SoftPromptModule
from ptlit.prompted_lm import PromptedLM

__all__ = ["lm", "moods"]  # fixtures


def fit(
    module: SoftPromptModule,
    data: ClassificationData,
    folder: Path,
    *callbacks: L.Callback,
    resume: Path | None = None,
    **options: Any,
) -> None:
    plain: dict[str, Any] = {"val_check_interval": 5, "check_val_every_n_epoch": None, "max_steps": 10}
    trainer = trainer_of(folder, *callbacks, **(plain | options))
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]


@dataclass(frozen=True)
class Known:
    """A task that an untrained LM does without a mistake: the labels are its own answers."""

    lm: FrozenLM
    path: Path
    words: dict[str, str]

    @property
    def data(self) -> ClassificationData:
        return data_of(self.lm, self.path, label_words=self.words)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    lm, letters = tiny_lm("gpt2", spread=0.5), "".join(map(chr, range(1, 127)))  # a token each
    texts = [f"flight {i * 7919 % 1000} was {'late' if i % 3 else 'fine'}" for i in range(200)]
    tokens = torch.tensor([lm.tokenizer(letter)["input_ids"][0] for letter in letters])
    with torch.no_grad():
        last = [lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]])).logits[0, -1] for text in texts]
    scores = torch.stack(last)[:, tokens]
    one, two = (place for place, _ in Counter(scores.argmax(1).tolist()).most_common(2))
    rows = [(text, "one" if row[one] > row[two] else "two") for text, row in zip(texts, scores, strict=True)]
    path = tmp_path_factory.mktemp("data") / "known.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return Known(lm, path, {"one": letters[one], "two": letters[two]})


def test_a_start_far_from_the_lm(known: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, losses = known.data, Losses()
    module = module_of(known.lm, data, lr=1e-6)  # started from noise
    last = LastCheckpoint(str(tmp_path), every_n_train_steps=5)
    keeps: dict[str, Any] = {"enable_checkpointing": True, "val_check_interval": 50}
    fit(module, data, tmp_path, Advice(), losses, last, **keeps)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        logits = known.lm.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    untrained = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    (said,) = warnings(capsys)
    assert f"loss is {losses.seen[0]:.2f}, the untrained LM's on the same rows {untrained:.2f}" in said
    assert "prompt.init.text" in said
    last = LastCheckpoint(str(tmp_path / "on"), every_n_train_steps=5)
    fit(module, data, tmp_path, Advice(), last, **keeps, resume=tmp_path / "last.ckpt", max_steps=12)
    assert warnings(capsys) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 1000.0}, "times as large as at its start: lower optim.lr (now 1000)"),
        ({"lr": 0.01, "weight_decay": 60.0}, "of its size at the start: lower optim.weight_decay"),
    ],
)
def test_a_prompt_that_explodes_or_vanishes(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, float],
    sentence: str,
) -> None:
    data = data_of(lm, moods)
    module = module_of(lm, data, "prompt_tuning")
    module.make_optimizer = functools.partial(torch.optim.AdamW, **options)
    fit(module, data, tmp_path, Advice(), max_steps=20)
    assert len([said for said in warnings(capsys) if sentence in said]) == 1


def test_one_answer_for_all_is_told_in_the_later_two_thirds(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = data_of(lm, moods)
    module = module_of(lm, data, lr=1e-6)  # it answers as the untrained LM does, which knows one answer
    fit(module, data, tmp_path, Advice(), max_steps=30)
    (said,) = warnings(capsys)
    assert "at step 10 all rows of val get one label" in said and "data.balanced=true" in said


def test_worse_than_the_untrained_lm(
    known: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = module_of(known.lm, known.data, lr=1e-6)
    prompt = module.prompted_lm.prompt
    prompt.start_at(10 * torch.randn_like(prompt()))
    fit(module, known.data, tmp_path, Advice())
    (said,) = [line for line in warnings(capsys) if "template" in line]
    assert "the untrained LM 100%, on 20 rows of val" in said and "lower optim.lr (now 1e-06)" in said


def test_texts_are_compared_by_their_loss(
    known: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = known.data
    prompted_lm = module_of(known.lm, data).prompted_lm
    text = SoftPromptModule(prompted_lm, functools.partial(torch.optim.AdamW, lr=1e-6))
    fit(text, data, tmp_path, Advice(), max_steps=5)
    judge = trainer_of(tmp_path)
    alone, behind = (
        judge.validate(each, data, verbose=False)[0]["val/loss"]
        for each in (SoftPromptModule(PromptedLM(known.lm, None)), text)
    )
    said = [line for line in warnings(capsys) if "template" in line]
    assert len(said) == 1 and f"a loss of {behind:.2f}, the untrained LM one of {alone:.2f}" in said[0]


@pytest.mark.parametrize("text", [False, True])
def test_a_healthy_run_hears_nothing_and_learns_the_same(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: bool,
) -> None:
    def losses(*callbacks: L.Callback) -> list[float]:
        seen, data = Losses(), data_of(lm, moods)
        module = module_of(lm, data, "ptuning_v2", lr=0.2)  # it has dropout
        if text:
            module = SoftPromptModule(module.prompted_lm, module.make_optimizer, module.make_schedule)
        torch.manual_seed(5)
        steps = 20 if text else 80
        fit(module, data, tmp_path, seen, *callbacks, max_steps=steps, val_check_interval=steps // 2)
        return seen.seen

    assert losses(Advice()) == losses()
    assert warnings(capsys) == []
