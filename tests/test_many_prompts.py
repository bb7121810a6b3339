"""Rows behind prompts of their own: each is answered as it would be by itself."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from methods import make_prompt
from omegaconf import OmegaConf
from runs import TWEETS, call, train_at
from tiny import padded_rows, tiny_lm
from torch import Tensor

from ptlit.data import LabelWords
from ptlit.lm import FrozenLM
from ptlit.lora import TrainedLora, with_lora
from ptlit.many_prompts import ManyPrompts
from ptlit.mistake import UserMistake
from ptlit.predict import main as predict
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
    """With a head of its own: one that is tied to such embeddings says again what it has read."""
    lm = tiny_lm(name, spread=0.3)
    lm.model.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(259, 32))
    return FrozenLM(lm.model.double(), lm.tokenizer)


def all_methods(lm: FrozenLM) -> dict[str, PromptedLM]:
    torch.manual_seed(3)
    made = {}
    for name, length in LENGTHS.items():
        prompt = make_prompt(name, lm.shape, num_virtual_tokens=length, lm_scale=False).double()
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


@pytest.mark.parametrize("way", [{}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("architecture", LMS)
def test_text_is_what_each_row_writes_alone(
    prompts: dict[str, dict[str, PromptedLM]], architecture: str, way: dict[str, int]
) -> None:
    own = prompts[architecture]
    texts, mask, _ = padded_rows(TEXTS)
    shifts = [max(TEXTS) - length for length in TEXTS]
    left, seen = (
        torch.stack([row.roll(by) for row, by in zip(each, shifts, strict=True)]) for each in (texts, mask)
    )
    left, seen = (torch.nn.functional.pad(each, (40, 0)) for each in (left, seen))
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | way
    sequences = settings.get("num_return_sequences", 1)
    written = ManyPrompts(own).generate(NAMES, left, seen, **settings)
    assert torch.equal(written[:, : left.shape[1]], left.repeat_interleave(sequences, 0))
    for row, name, length in zip(range(len(TEXTS)), NAMES, TEXTS, strict=True):
        text = texts[row : row + 1, :length]
        by_itself = own[name].generate(text, torch.ones_like(text), **settings)
        here = written[row * sequences : (row + 1) * sequences, left.shape[1] :]
        assert here.tolist() == by_itself[:, length:].tolist()
    assert len(set(written[:, left.shape[1] :].flatten().tolist())) > 20


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
    wearing = with_lora(tiny_lm("llama"), TrainedLora())
    without = PromptedLM(mamba, make_prompt("prompt_tuning", mamba.shape))
    for given, said in (
        ({}, "No prompt"),
        ({"a": usual, "b": prompts["gpt2"]["prompt_tuning"]}, "one batch has one LM"),
        ({"a": usual, "b": in_rows}, "'b' has virtual tokens inside its template"),
        (
            {"a": usual, "b": PromptedLM(wearing, make_prompt("prompt_tuning", wearing.shape))},
            "'b' has a LoRA of its own on the LM",
        ),
        ({"a": without}, "does not keep keys and values in every layer"),
        ({"a": PromptedLM(lm, None)}, "'a' has no prompt"),
    ):
        with pytest.raises(UserMistake, match=said):
            ManyPrompts(given)
    ids, mask, _ = padded_rows()
    with pytest.raises(UserMistake, match="no prompt 'b', only a"):
        ManyPrompts({"a": usual}).generate(["a", "b", "a", "a"], ids.flip(1), mask.flip(1))
    with pytest.raises(UserMistake, match="'a' names no labels"):
        ManyPrompts({"a": usual}).label_scores(["a"] * 4, ids, mask)
    with pytest.raises(UserMistake, match="leave out assistants, use_cache"):
        ManyPrompts({"a": usual}).generate(["a"] * 4, ids.flip(1), mask.flip(1), use_cache=False)


@pytest.fixture(scope="module")
def mixed(place: Path, trained: Path, trained_deep: Path) -> list[dict[str, str]]:
    """The rows of mixed.csv: of two runs that listen for the same labels, and of one that does not."""
    about = [
        {"text": text, "label": "abc"[i % 3], "topic": f"x{i % 2}"} for i, (text, _) in enumerate(TWEETS)
    ]
    write(place / "about.csv", about)
    words = "data.label_words={a: [' air', ' a'], b: ' boat ride', c: ' c'}"
    options = ["data.path=about.csv", "data.template='{topic}: {text}'", "data.calibrate=true", words]
    train_at(place, "about", "experiment=prompt_tuning", "prompt.num_virtual_tokens=3", *options)
    rows = [
        {"task": ("run", "deep", "about")[i % 3], "text": text * (1 + i % 4), "topic": f"x{i % 2}"}
        for i, (text, _) in enumerate(TWEETS)
    ]
    write(place / "mixed.csv", rows)
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)


def answers(place: Path, *words: str) -> list[dict[str, object]]:
    call(place, predict, *words, "output=answers.jsonl", "overwrite=true")
    return [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]


LABELS = {"run": ("bad", "good"), "deep": ("bad", "good"), "about": ("a", "b", "c")}


@pytest.mark.parametrize("size", [(), ("chunk_size=17", "batch_size=5")])
def test_a_file_of_several_tasks_is_answered_as_by_each_run(
    place: Path, mixed: list[dict[str, str]], size: tuple[str, ...]
) -> None:
    together = answers(place, "run=run,deep,about", "run_column=task", "input=mixed.csv", *size)
    assert [{key: row[key] for key in ("task", "text", "topic")} for row in together] == mixed
    for name, labels in LABELS.items():
        apart = answers(place, f"run={name}", "input=mixed.csv")
        for row, wanted in zip(together, apart, strict=True):
            if row["task"] != name:
                continue
            chances = {label: row[f"probability_{label}"] for label in ("bad", "good", "a", "b", "c")}
            assert {label for label in chances if chances[label] is not None} == set(labels)
            for label in labels:
                assert chances[label] == pytest.approx(wanted[f"probability_{label}"], abs=1e-5)
            assert row["probability"] == max(chances[label] for label in labels)
            assert chances[row["prediction"]] == row["probability"]


def test_a_row_that_no_run_answers_is_bad(
    place: Path, mixed: list[dict[str, str]], capsys: pytest.CaptureFixture
) -> None:
    rows = [
        {"task": "mood", "text": "one"},
        {"task": "moot", "text": "two"},
        {"text": "three"},
        {"task": "subject", "text": "four"},
        {"task": "subject", "text": "five", "topic": "x"},
        {"task": " mood ", "text": "six"},
    ]
    (place / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["run={mood: run, subject: about}", "run_column=task", "input=odd.jsonl"]
    said = (
        "3 bad rows: line 2: the run 'moot' in the column 'task', not one of mood, subject; "
        "line 3: nothing in the column 'task', not one of mood, subject; "
        "line 4: nothing in the column 'topic', which the template names"
    )
    with pytest.raises(SystemExit, match=said):
        answers(place, *words)
    capsys.readouterr()
    found = answers(place, *words, "on_bad_row=skip")
    assert [row["prediction"] is None for row in found] == [False, True, True, True, False, False]
    assert "6 rows in" in (printed := capsys.readouterr().out) and "; subject: a " in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["run=run,deep"],
            "run names 2 runs, and nothing says .*: give run_column=<a column that holds run or deep>",
        ),
        (["run=run,deep", "run_column=tusk"], "has no column 'tusk' .nearest: 'task'.; set run_column"),
        (["run=run,deep", "run_column=text"], "run_column=text is the column with the texts"),
        (["run=run,gone", "run_column=task"], "run=gone: there is no such folder"),
        (["run=[]", "run_column=task"], "names no run folder"),
        (["run=run,apart", "run_column=task"], "'apart' stands before .*: one batch has one LM"),
        (
            ["run=run,latin", "run_column=task"],
            "run was trained with data.encoding=None and latin with latin-1: give",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    place: Path, trained: Path, mixed: list[dict[str, str]], words: list[str], said: str
) -> None:
    for name, key, value in (
        ("apart", "model.name_or_path", str(place / "lm2")),
        ("latin", "data.encoding", "latin-1"),
    ):
        if f"run=run,{name}" in words:
            shutil.copytree(place / "lm", place / "lm2", dirs_exist_ok=True)
            shutil.copytree(trained, place / name)
            cfg = OmegaConf.load(trained / "config.yaml")
            OmegaConf.update(cfg, key, value)
            OmegaConf.save(cfg, place / name / "config.yaml")
    with pytest.raises(SystemExit, match=said) as end:
        call(place, predict, *words, "input=mixed.csv", "output=o.csv")
    assert len(str(end.value).splitlines()) == 1
    assert not (place / "o.csv").exists() and not list(place.glob("*.unfinished"))
