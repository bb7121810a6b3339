"""Virtual tokens inside a template: the same numbers as a row put together by hand, on every route."""

import csv
import json
from pathlib import Path

import pytest
import torch
from methods import make_prompt
from runs import call, make_place, train_at
from tiny import ARCHITECTURES, byte_tokenizer, padded_rows, tiny_lm
from torch import Tensor

from ptlit.data import Template
from ptlit.data.example import NOT_LEARNED, encode
from ptlit.evaluate import main as evaluate
from ptlit.export import main as export
from ptlit.inspect import main as inspect
from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.mistake import UserMistake
from ptlit.predict import main as predict
from ptlit.prompted_lm import PromptedLM
from ptlit.train import main as train

INPUT_METHODS = ("prompt_tuning", "ptuning_mlp", "ptuning_lstm")


@pytest.fixture(scope="module")
def lms() -> dict[str, FrozenLM]:
    found = {}
    for name in (*ARCHITECTURES, "mamba"):
        lm = tiny_lm(name, spread=0.3)
        found[name] = FrozenLM(lm.model.double(), lm.tokenizer)
    return found


def prompted(lm: FrozenLM, method: str = "ptuning_mlp") -> PromptedLM:
    torch.manual_seed(7)
    return PromptedLM(lm, make_prompt(method, lm.shape).double(), slots=6).eval()


def rows_with_places() -> tuple[Tensor, Tensor, Tensor]:
    """Two words that all rows begin with, two places, words, and four places before what is learned."""
    ids, mask, labels = padded_rows((15, 11, 10, 13))
    ids[:, :4] = torch.tensor([7, 8, -1, -2])
    for row, length in zip(ids, mask.sum(1).tolist(), strict=True):
        row[length - 7 : length - 3] = torch.tensor([-3, -4, -5, -6])
    return ids, mask, labels


def by_hand(prompted_lm: PromptedLM, ids: Tensor) -> Tensor:
    """Logits (T, V) of one row, its embeddings put together one by one."""
    virtual = prompted_lm.prompt()
    words = prompted_lm.lm.model.get_input_embeddings()
    parts = [virtual[-1 - token] if token < 0 else words(torch.tensor(token)) for token in ids.tolist()]
    return prompted_lm.lm.model(inputs_embeds=torch.stack(parts)[None], use_cache=False).logits[0]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))


@pytest.mark.parametrize("method", INPUT_METHODS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mamba"])
def test_a_row_is_what_it_would_be_by_hand(lms: dict[str, FrozenLM], architecture: str, method: str) -> None:
    prompted_lm = prompted(lms[architecture], method)
    weights = list(prompted_lm.prompt.parameters())
    ids, mask, labels = rows_with_places()
    keep, targets = learned_positions(labels)
    fast = prompted_lm(ids, mask, keep)
    lengths = mask.sum(1).tolist()
    each = [by_hand(prompted_lm, row[:n])[kept[:n]] for row, n, kept in zip(ids, lengths, keep, strict=True)]
    close(fast, torch.cat(each))
    gradients = torch.autograd.grad(learned_token_loss(fast, targets), weights)
    wanted = torch.autograd.grad(learned_token_loss(torch.cat(each), targets), weights)
    for one, other in zip(gradients, wanted, strict=True):
        assert one.abs().sum() > 0
        close(one, other)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mamba"])
def test_labels_are_scored_and_text_is_written_behind_slots(
    lms: dict[str, FrozenLM], architecture: str
) -> None:
    prompted_lm = prompted(lms[architecture])
    ids, mask, _ = rows_with_places()
    labels = ((40, 41), (40,), (50, 60, 70))
    with torch.no_grad():
        scores = prompted_lm.label_scores(ids, mask, labels)
        for row, length, score in zip(ids, mask.sum(1).tolist(), scores, strict=True):
            for label, found in zip(labels, score, strict=True):
                whole = torch.cat([row[:length], torch.tensor(label)])
                said = by_hand(prompted_lm, whole)[length - 1 : -1].log_softmax(-1)
                right = said.gather(1, torch.tensor(label)[:, None]).sum()
                torch.testing.assert_close(found.double(), right.double(), rtol=1e-4, atol=1e-4)
        row = ids[:1, :15]
        written = prompted_lm.generate(row, torch.ones_like(row), max_new_tokens=4, do_sample=False)
        whole = row[0]
        for _ in range(4):
            whole = torch.cat([whole, by_hand(prompted_lm, whole)[-1].argmax()[None]])
    assert written[0].tolist() == whole.tolist()


def test_an_lm_without_a_prompt_reads_the_rows_without_the_places(lms: dict[str, FrozenLM]) -> None:
    untrained = PromptedLM(lms["llama"], None)
    ids, mask, labels = rows_with_places()
    keep, _ = learned_positions(labels)
    rows = [
        (row[:n][row[:n] >= 0], learned[:n][row[:n] >= 0])
        for row, learned, n in zip(ids, labels, mask.sum(1).tolist(), strict=True)
    ]
    alone = []
    with torch.no_grad():
        found = untrained(ids, mask, keep)
        for row, learned in rows:
            alone.append(
                untrained(row[None], torch.ones_like(row)[None], learned_positions(learned[None])[0])
            )
        close(found, torch.cat(alone))
        scores = untrained.label_scores(ids, mask, ((5,), (6, 7)))
        each = [
            untrained.label_scores(row[None], torch.ones_like(row)[None], ((5,), (6, 7))) for row, _ in rows
        ]
        close(scores, torch.cat(each))


def test_slots_in_front_are_what_a_prompt_is_anyway(lms: dict[str, FrozenLM]) -> None:
    in_slots = prompted(lms["qwen3"])
    usual = PromptedLM(in_slots.lm, in_slots.prompt)
    ids, mask, labels = padded_rows()
    keep, _ = learned_positions(labels)
    places = torch.arange(-1, -7, -1).expand(len(ids), -1)
    behind = torch.nn.functional.pad
    with_places = in_slots(torch.cat([places, ids], 1), behind(mask, (6, 0), value=1), behind(keep, (6, 0)))
    close(with_places, usual(ids, mask, keep))


def test_the_places_stand_where_the_template_says() -> None:
    tokenizer = byte_tokenizer(adds_bos=True)
    template = Template("{soft:2}Tweet: {text}{soft:3}\nSentiment:")
    assert template.slots == 5 and template.fields == ("text",)
    row = encode(template.example("Hä?", target=" good"), tokenizer, 100)
    texts = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("Tweet: Hä?", "\nSentiment:", " good")
    ]
    assert row["input_ids"] == [1, -1, -2, *texts[0], -3, -4, -5, *texts[1], *texts[2]]
    assert row["labels"] == [NOT_LEARNED] * (len(row["input_ids"]) - 5) + texts[2]
    cut = encode(template.example("Hä?" * 30, target=" good"), tokenizer, 40)
    assert [token for token in cut["input_ids"] if token < 0] == [-1, -2, -3, -4, -5]
    assert len(cut["input_ids"]) == 45  # the same text is left as without slots
    assert cut["input_ids"][-16:] == row["input_ids"][-16:]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{soft}{text}", "a slot says how many virtual tokens stand in it"),
        ("{soft:0}{text}", "a slot says how many virtual tokens stand in it"),
        ("{soft:x}{text}", "a slot says how many virtual tokens stand in it"),
        ("{text:5}", "only plain fields like {text} and slots like {soft:10}"),
    ],
)
def test_a_broken_slot_is_told(template: str, said: str) -> None:
    with pytest.raises(UserMistake) as mistake:
        Template(template)
    assert said in str(mistake.value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("slots"))


def test_a_run_with_slots_is_judged_as_it_was_trained(place: Path) -> None:
    template = "data.template='Read {soft:2}{text} {soft:4}Mood:'"
    folder = train_at(place, "slots", "experiment=ptuning_mlp", template, "trainer.max_steps=6")
    trained = json.loads((folder / "metrics.json").read_text())
    plain = train_at(
        place, "plain", "experiment=ptuning_mlp", "data.template='Read {text} Mood:'", "trainer.max_steps=1"
    )
    unprompted = json.loads((plain / "metrics.json").read_text())
    for name in ("accuracy", "loss"):  # the hard prompt is the template without the places
        key = f"baseline/hard_prompt/{name}"
        assert trained[key] == pytest.approx(unprompted[key], rel=1e-3)
    call(place, evaluate, "run=slots")
    judged = folder / "evaluation" / "test"
    again = json.loads((judged / "metrics.json").read_text())
    assert again["test/loss"] == pytest.approx(trained["test/loss"], rel=1e-5)
    assert "inside the template" in (folder / "adapter" / "README.md").read_text()

    call(place, predict, "run=slots", "input=tweets.csv", "output=answers.csv")
    with (place / "answers.csv").open() as file:
        answers = {row["text"]: row["probability_bad"] for row in csv.DictReader(file)}
    with (judged / "predictions.csv").open() as file:
        for row in csv.DictReader(file):
            assert float(answers[row["text"]]) == pytest.approx(float(row["probability_bad"]), abs=1e-4)
    call(place, inspect, "run=slots")
    assert (folder / "inspect.csv").is_file()
    for form in ("checkpoint", "kv", "peft", "vllm"):
        with pytest.raises(SystemExit, match="virtual tokens inside its template"):
            call(place, export, "run=slots", f"format={form}", "output=out")
        assert not (place / "out").exists()


def test_slots_that_do_not_fit_the_prompt_are_told_before_anything_loads(place: Path) -> None:
    options = ["data=classification", "data.path=tweets.csv", "model=hf", "model.name_or_path=nowhere"]
    for words, said in (
        (["experiment=ptuning_mlp"], "has slots for 3 virtual tokens and prompt.num_virtual_tokens is 20"),
        (["experiment=ptuning_v2"], "slots for virtual tokens, which a deep prompt does not have"),
    ):
        with pytest.raises(SystemExit) as stopped:
            call(place, train, *options, *words, "data.template='{soft:3}{text}'", "hydra.run.dir=none")
        assert said in str(stopped.value)
