"""A training held near the predictions of another run: the very numbers, and what cannot be a teacher."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from methods import make_prompt
from runs import train_at
from test_training import data_of, lm, moods
from tiny import tiny_lm
from torch import Tensor

from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions
from ptlit.module import SoftPromptModule
from ptlit.prompted_lm import PromptedLM
from ptlit.reference import Reference
from ptlit.run import open_run

__all__ = ["lm", "moods"]  # fixtures


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """By its definition."""
    p, q = reference.softmax(-1), logits.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize(("method", "temperature"), [("prefix_tuning", 1.0), ("ptuning_lstm", 2.5)])
@pytest.mark.parametrize("template", ["{text}", "{soft:2}{text}{soft:4}"])
def test_what_is_added_is_the_divergence_from_the_teacher(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    method: str,
    temperature: float,
    template: str,
) -> None:
    data = data_of(lm, moods, template=template)
    torch.manual_seed(3)
    larger = PromptedLM(lm, make_prompt(method, lm.shape, num_virtual_tokens=9)).eval()
    prompted_lm = PromptedLM(lm, make_prompt("ptuning_mlp", lm.shape), data.slots)
    teacher = Reference("distill", larger, 0.3, temperature)
    module = SoftPromptModule(prompted_lm, label_words=data.label_words, kl_weight=0.2, teacher=teacher)
    batch, other = list(data.train_dataloader())[:2]
    computed: list[int] = []
    handle = larger.prompt.register_forward_hook(lambda *_: computed.append(1))  # type: ignore[union-attr]
    losses = module.losses(batch)
    module.losses(other)
    handle.remove()
    assert len(computed) == 1  # for all of the training

    keep, _ = learned_positions(batch["labels"])
    mine = prompted_lm(batch["input_ids"], batch["attention_mask"], keep)
    theirs, own = [], []
    for ids, row, mask in zip(batch["input_ids"], keep, batch["attention_mask"], strict=True):
        words = (ids >= 0) & (mask == 1)
        count = int(row.sum())  # of the last words, each is read but the very last
        here = torch.zeros(1, int(words.sum()), dtype=torch.bool)
        here[0, -1 - count : -1] = True
        alone = ids[words][None], torch.ones(1, int(words.sum()), dtype=torch.long), here
        theirs.append(larger.forward_concatenated(*alone))
        own.append(PromptedLM(lm, None).forward_concatenated(*alone))
    distilled = temperature**2 * kl(torch.cat(theirs) / temperature, mine / temperature)
    torch.testing.assert_close(losses["distill"], distilled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses["kl"], kl(torch.cat(own), mine), atol=1e-5, rtol=1e-4)
    total = losses["loss"] + 0.3 * losses["distill"] + 0.2 * losses["kl"]
    torch.testing.assert_close(losses["total"], total)
    losses["total"].backward()
    assert all(each.grad is None for each in larger.parameters())
    assert len(module.state_dict()) == len(prompted_lm.prompt.state_dict())  # type: ignore[union-attr]


def student(place: Path, name: str, teacher: Path | str, *words: str) -> Path:
    shared = ["experiment=prompt_tuning", "prompt.num_virtual_tokens=2", "trainer.max_steps=2"]
    return train_at(place, name, *shared, f"distill.run={teacher}", *words)


def test_a_run_learns_from_another(place: Path, trained: Path) -> None:
    folder = student(place, "student", trained.relative_to(place), "trainer.log_every_n_steps=1")
    with (folder / "metrics.csv").open(newline="") as file:
        told = [float(row["train/distill"]) for row in csv.DictReader(file) if row.get("train/distill")]
    assert told and min(told) > 0
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["distill"]["run"] == str(trained.resolve())
    assert open_run(folder).prompted_lm.num_virtual_tokens == 2
    lm = open_run(trained).lm  # noqa: F811
    assert open_run(trained, lm=lm).lm is lm


@pytest.mark.parametrize("word", ["data.template='Text: {text}'", "data.label_words={bad: x, good: y}"])
def test_a_teacher_that_reads_otherwise(place: Path, trained: Path, word: str) -> None:
    with pytest.raises(SystemExit, match="reads rows in another way: give this run the template and label"):
        student(place, "wrong", trained, word)
    assert not (place / "wrong").exists()


def test_a_teacher_of_another_lm(place: Path, trained: Path, tmp_path: Path) -> None:
    other = tiny_lm("llama", spread=0.1)
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="was trained on .* has other weights"):
        student(place, "wrong", trained, f"model.name_or_path={tmp_path}/other")
