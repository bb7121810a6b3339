"""Rows behind prompts of their own: each is answered as it would be by itself."""

import pytest
import torch
from methods import make_prompt
from tiny import padded_rows, tiny_lm
from torch import Tensor

from ptlit.data import LabelWords
from ptlit.lm import FrozenLM
from ptlit.many_prompts import ManyPrompts
from ptlit.mistake import UserMistake
from ptlit.prompted_lm import PromptedLM

LMS = ("gpt2", "llama", "bloom", "qwen3", "gemma3", "opt")
LENGTHS = {"prompt_tuning": 3, "ptuning_mlp": 6, "prefix_tuning": 5, "ptuning_v2": 4}
WORDS = {
    "prompt_tuning": LabelWords(("bad", "good"), ((" bad",), (" good",)), ((5,), (6,)), False),
    "ptuning_mlp": LabelWords(
        ("good", "so so"), ((" good", " fine"), (" so so",)), ((7, 8, 9), (10,), (11, 12)), False
    ),
    "prefix_tuning": LabelWords(("bad", "x", "y"), (("b",), ("x",), ("y",)), ((20,), (21,), (22,)), False),
    "ptuning_v2": LabelWords(("good", "bad"), (("g",), ("b",)), ((30,), (31,)), False, ((40, 41), (42,))),
}
ONE_TOKEN = ("prompt_tuning", "prefix_tuning", "ptuning_v2")
TEXTS = (14, 9, 5, 12, 1, 30, 7)  # lengths: beyond gemma3's sliding window, and a single token
NAMES = (
    "prefix_tuning",
    "prompt_tuning",
    "ptuning_mlp",
    "ptuning_mlp",
    "ptuning_v2",
    "prompt_tuning",
    "ptuning_v2",
)


@pytest.fixture(scope="module")
def prompts() -> dict[str, dict[str, PromptedLM]]:
    return {name: all_methods(doubled(name)) for name in LMS}


def doubled(name: str) -> FrozenLM:
    lm = tiny_lm(name, spread=0.3)
    return FrozenLM(lm.model.double(), lm.tokenizer)


def all_methods(lm: FrozenLM) -> dict[str, PromptedLM]:
    torch.manual_seed(3)
    made = {}
    for name, length in LENGTHS.items():
        prompt = make_prompt(name, lm.shape, num_virtual_tokens=length).double()
        for parameter in prompt.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        made[name] = PromptedLM(lm, prompt).eval()
    return made


def alone(prompted_lm: PromptedLM, words: LabelWords, ids: Tensor) -> dict[str, float]:
    """Each word of each label after one text, read in full by the slow route."""

    def likelihood(text: list[int], word: tuple[int, ...]) -> Tensor:
        row = torch.tensor([[*text, *word]])
        keep = torch.zeros_like(row, dtype=torch.bool)
        keep[:, len(text) - 1 : -1] = True
        logits = prompted_lm.forward_concatenated(row, torch.ones_like(row), keep)
        return logits.log_softmax(-1)[range(len(word)), list(word)].sum()

    def of_labels(text: list[int]) -> Tensor:
        return words.of_labels(torch.stack([likelihood(text, word) for word in words.token_ids])[None])[0]

    scores = of_labels(ids.tolist())
    if words.content_free:
        empty = torch.stack([of_labels(list(text)).softmax(0) for text in words.content_free])
        scores = scores - empty.mean(0).log()
    return dict(zip(words.names, scores.tolist(), strict=True))


@pytest.mark.parametrize("names", [NAMES, ONE_TOKEN * 2 + ONE_TOKEN[:1]])
@pytest.mark.parametrize("architecture", LMS)
def test_scores_are_those_of_each_row_alone(
    prompts: dict[str, dict[str, PromptedLM]], architecture: str, names: tuple[str, ...]
) -> None:
    own = prompts[architecture]
    many = ManyPrompts(own, WORDS)
    assert many.labels == ("bad", "good", "so so", "x", "y")
    ids, mask, _ = padded_rows(TEXTS)
    scores = many.label_scores(names, ids, mask)
    with torch.no_grad():
        for row, name, length in zip(range(len(TEXTS)), names, TEXTS, strict=True):
            wanted = alone(own[name], WORDS[name], ids[row, :length])
            found = dict(zip(many.labels, scores[row].tolist(), strict=True))
            assert {label: found.pop(label) for label in wanted} == pytest.approx(wanted, abs=2e-5)
            assert set(found.values()) <= {-torch.inf}


@pytest.mark.parametrize("architecture", LMS)
def test_text_is_what_each_row_writes_alone(
    prompts: dict[str, dict[str, PromptedLM]], architecture: str
) -> None:
    own = prompts[architecture]
    texts, mask, _ = padded_rows(TEXTS)
    shifts = [max(TEXTS) - length for length in TEXTS]
    left, seen = (
        torch.stack([row.roll(by) for row, by in zip(each, shifts, strict=True)]) for each in (texts, mask)
    )
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    written = ManyPrompts(own).generate(NAMES, left, seen, **settings)
    assert torch.equal(written[:, : left.shape[1]], left)
    for row, name, length in zip(range(len(TEXTS)), NAMES, TEXTS, strict=True):
        text = texts[row : row + 1, :length]
        by_itself = own[name].generate(text, torch.ones_like(text), **settings)
        assert written[row, left.shape[1] :].tolist() == by_itself[0, length:].tolist()


def test_prompts_are_computed_once(prompts: dict[str, dict[str, PromptedLM]]) -> None:
    calls = []
    own = all_methods(prompts["llama"]["prompt_tuning"].lm)
    for name, prompted_lm in own.items():
        prompted_lm.prompt.register_forward_hook(lambda *_, name=name: calls.append(name))
    many = ManyPrompts(own, WORDS)
    ids, mask, _ = padded_rows(TEXTS)
    first = many.label_scores(NAMES, ids, mask)
    torch.testing.assert_close(many.label_scores(NAMES[::-1], ids.flip(0), mask.flip(0)).flip(0), first)
    assert sorted(calls) == sorted(own)


def test_what_one_batch_cannot_serve_is_told(prompts: dict[str, dict[str, PromptedLM]]) -> None:
    lm = prompts["llama"]["prompt_tuning"].lm
    usual = prompts["llama"]["prompt_tuning"]
    in_rows = PromptedLM(lm, make_prompt("prompt_tuning", lm.shape), slots=6)
    mamba = tiny_lm("mamba")
    without = PromptedLM(mamba, make_prompt("prompt_tuning", mamba.shape))
    for given, said in (
        ({}, "No prompt"),
        ({"a": usual, "b": prompts["gpt2"]["prompt_tuning"]}, "one batch has one LM"),
        ({"a": usual, "b": in_rows}, "'b' has virtual tokens inside its template"),
        ({"a": without}, "does not keep keys and values in every layer"),
        ({"a": PromptedLM(lm, None)}, "'a' has no prompt"),
    ):
        with pytest.raises(UserMistake, match=said):
            ManyPrompts(given)
    ids, mask, _ = padded_rows()
    with pytest.raises(UserMistake, match="no prompt 'b', only a"):
        ManyPrompts({"a": usual}).generate(["a", "b", "a", "a"], ids, mask)
    with pytest.raises(UserMistake, match="'a' names no labels"):
        ManyPrompts({"a": usual}).label_scores(["a"] * 4, ids, mask)
