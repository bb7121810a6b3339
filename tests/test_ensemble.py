"""Prompts that learn side by side, against each alone; what they say together, against PEFT and a mean."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from methods import METHODS, make_prompt
from peft import PeftModel
from runs import call, train_at
from test_training import data_of, lm, module_of, moods, trainer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptlit import chat, evaluate, export, predict
from ptlit.build import check_ensemble
from ptlit.ensemble import ASIDE, move_aside
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.prompt import SoftPrompt
from ptlit.prompt.init import start_prompt

__all__ = ["lm", "moods"]  # fixtures


@pytest.fixture(scope="module")
def three(place: Path) -> Path:
    words = "data.label_words={bad: ' bad', good: ' very good'}"
    return train_at(place, "three", "experiment=prompt_tuning", "ensemble=3", words)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["prompt_tuning", "ptuning_lstm", "prefix_projection"])
def test_each_learns_as_it_would_alone(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    method: str,
) -> None:
    """Where gradients are clipped too: they are, by a norm that is never below this."""
    data = data_of(lm, moods)

    def trained(module: SoftPromptModule) -> SoftPromptModule:
        trainer_of(tmp_path, max_steps=8, gradient_clip_val=1e-3).fit(module, data)
        return module

    together = module_of(lm, data, method, members=2)
    alone = [module_of(lm, data, method), module_of(lm, data, method)]
    alone[1].prompted_lm.prompt.load_state_dict(together.prompts[1].state_dict())  # type: ignore[union-attr]
    trained(together)
    for prompt, by_itself in zip(together.prompts, map(trained, alone), strict=True):
        learned = by_itself.prompts[0].state_dict()
        for name, value in prompt.state_dict().items():
            torch.testing.assert_close(value, learned[name], rtol=1e-4, atol=1e-6)
    first, second = (prompt() for prompt in together.prompts)
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_label_has_the_mean_of_its_probabilities(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    calibrate: bool,
) -> None:
    data = data_of(lm, moods, label_words={"bad": " bad", "good": " very good"}, calibrate=calibrate)
    module = module_of(lm, data, "prefix_tuning", members=3).eval()
    words, batch = data.label_words, next(iter(data.eval_dataloader("val")))
    text = batch["attention_mask"] * (batch["labels"] == -100)

    def mean(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        each = [member.label_scores(ids, mask, words.token_ids).double() for member in module.members]
        assert (each[0] - each[1]).abs().max() > 0.1
        return torch.stack(each).exp().mean(0)

    with torch.no_grad():
        expected = mean(batch["input_ids"], text).log()
        if calibrate:
            said = [mean(torch.tensor([row]), torch.ones(1, len(row)).long()) for row in words.content_free]
            expected -= torch.cat([each / each.sum() for each in said]).mean(0).log()
        scores = module.scores(batch)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)


def test_answers_are_the_mean_of_those_in_peft(place: Path, three: Path) -> None:
    call(place, predict.main, "run=three", "input=tweets.csv", "output=three.csv")
    tokenizer, chances = AutoTokenizer.from_pretrained(place / "lm"), []
    rows = rows_of(place / "three.csv")[::24]
    for adapter in ("adapter", "adapter_2", "adapter_3"):
        lm = AutoModelForCausalLM.from_pretrained(place / "lm")  # noqa: F811
        peft = PeftModel.from_pretrained(lm, str(three / adapter)).eval()
        for row in rows:
            for name in (" bad", " very good"):
                text, label = tokenizer(row["text"])["input_ids"], tokenizer(name)["input_ids"]
                with torch.no_grad():
                    logits = peft(input_ids=torch.tensor([[*text, *label]])).logits[0, -len(label) - 1 : -1]
                chances.append(logits.log_softmax(-1)[range(len(label)), label].sum().exp())
    each = torch.stack(chances).view(3, len(rows), 2)
    assert (each[0] - each[1]).abs().max() > 1e-3 * each.max()
    expected = each.mean(0) / each.mean(0).sum(1, keepdim=True)
    for row, (bad, good) in zip(rows, expected.tolist(), strict=True):
        assert [float(row["probability_bad"]), float(row["probability_good"])] == pytest.approx(
            [bad, good], abs=1e-4
        )
    for adapter in ("adapter", "adapter_3"):
        card = (three / adapter / "README.md").read_text()
        assert "one of 3 prompts" in card and "| ensemble | `3` |" in card


def test_it_is_judged_again_as_in_training(place: Path, three: Path) -> None:
    call(place, evaluate.main, "run=three")
    then, again = (
        rows_of(folder / "predictions.csv") for folder in (three / "report", three / "evaluation/test")
    )
    assert [row["prediction"] for row in again] == [row["prediction"] for row in then]
    assert [float(row["probability_bad"]) for row in again] == pytest.approx(
        [float(row["probability_bad"]) for row in then], abs=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_starts_beside_the_first(lm: FrozenLM, method: str) -> None:  # noqa: F811
    """Half as far from it as it is wide, each layer's keys and values in their own width."""
    torch.manual_seed(0)
    prompt: SoftPrompt = make_prompt(method, lm.shape, num_virtual_tokens=30).eval()
    start_prompt(prompt, lm, text="the task in some words")
    start = prompt().detach()
    move_aside(prompt)
    moved = (prompt() - start).detach()
    apart = tuple(range(start.ndim))[-3:]
    torch.testing.assert_close(moved.std(apart), ASIDE * start.std(apart), rtol=0.1, atol=0.0)
    assert not prompt.training


def test_who_needs_one_prompt_says_so(place: Path, three: Path, trained: Path) -> None:
    for main, *words in (
        (export.main, "run=three", "output=three_out"),
        (chat.main, "run=three"),
        (predict.main, "run=[three,run]", "run_column=label", "input=tweets.csv", "output=x.csv"),
    ):
        assert "run=three is an ensemble of 3 prompts" in said_by(place, main, *words)
    assert not (place / "three_out").exists()
    call(place, export.main, "run=three/adapter_2", "output=three_out")
    assert (place / "three_out" / "README.md").is_file()


def said_by(place: Path, main: Callable[[], None], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        call(place, main, *words)
    return str(end.value)


def test_what_cannot_be_averaged(lm: FrozenLM, moods: Path, place: Path) -> None:  # noqa: F811
    data = data_of(lm, moods)
    check_ensemble(2, lm, data)
    data.label_words = None  # type: ignore[assignment]
    with pytest.raises(UserMistake, match="ensemble=2 averages what prompts say of labels"):
        check_ensemble(2, lm, data)
    check_ensemble(1, lm, data)
    with pytest.raises(SystemExit, match="lora=trained changes the LM that they share"):
        train_at(place, "shared", "experiment=prompt_tuning", "ensemble=2", "lora=trained")
