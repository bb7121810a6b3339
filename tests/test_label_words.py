"""Labels of several words, and answers freed of the LM's own leaning: by hand, one reading after another."""

import json
import math
from pathlib import Path

import pytest
import torch
from runs import call, make_place, train_at
from tiny import byte_tokenizer

from ptlit.data import LabelWords, Template
from ptlit.data.example import encode
from ptlit.evaluate import main as evaluate
from ptlit.mistake import UserMistake
from ptlit.run import Run, open_run

TEMPLATE = "data.template='Text: {text} Mood:'"
WORDS = "data.label_words={bad: [' bad', ' awful', ' no'], good: ' good'}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return train_at(place, "run", "experiment=prompt_tuning", WORDS, TEMPLATE, "data.calibrate=true")


def judged(folder: Path) -> Run:
    call(folder.parent, evaluate, f"run={folder.name}")
    return open_run(folder)


@torch.no_grad()
def likelihood(run: Run, text: str, words: list[str]) -> float:
    """Of any of the words after the template, each read in full."""
    assert run.template is not None
    total = 0.0
    for word in words:
        row = encode(run.template.example(text, target=word), run.lm.tokenizer, 200)
        ids, labels = (torch.tensor(row[key])[None] for key in ("input_ids", "labels"))
        logits = run.prompted_lm.forward_concatenated(ids, torch.ones_like(ids), torch.ones_like(ids).bool())
        learned = labels[0, 1:] != -100
        said = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        total += math.exp(float(said[learned].sum()))
    return total


def test_a_label_is_as_likely_as_its_words_together_beyond_the_lms_leaning(folder: Path) -> None:
    run = judged(folder)
    labels = {"bad": [" bad", " awful", " no"], "good": [" good"]}

    def chances(text: str) -> dict[str, float]:
        likely = {name: likelihood(run, text, words) for name, words in labels.items()}
        return {name: each / sum(likely.values()) for name, each in likely.items()}

    nothing = [chances(text) for text in ("N/A", "[MASK]", "")]
    leaning = {name: sum(each[name] for each in nothing) / 3 for name in labels}
    lines = (folder / "evaluation" / "test" / "predictions.csv").read_text().splitlines()[1:4]
    for line in lines:
        text, _, _, bad, good = line.split(",")
        said = {name: each / leaning[name] for name, each in chances(text).items()}
        assert float(bad) == pytest.approx(said["bad"] / sum(said.values()), rel=1e-3)
        assert float(good) == pytest.approx(said["good"] / sum(said.values()), rel=1e-3)


def test_the_run_remembers_words_and_calibration(folder: Path) -> None:
    words = open_run(folder).label_words
    assert words is not None and words.words == ((" bad", " awful", " no"), (" good",))
    assert len(words.content_free) == 3
    trained = json.loads((folder / "metrics.json").read_text())
    judged(folder)
    again = json.loads((folder / "evaluation" / "test" / "metrics.json").read_text())
    assert again["test/accuracy"] == trained["test/accuracy"]


def test_the_first_word_is_learned_and_scores_are_added() -> None:
    words = LabelWords.make(["a", "b"], byte_tokenizer(), words={"a": ["x", "yy"], "b": "z"})
    tokens = [tuple(byte_tokenizer()(word)["input_ids"]) for word in ("x", "yy", "z")]
    assert words.token_ids == tuple(tokens) and words.firsts == [tokens[0], tokens[2]]
    scores = words.of_labels(torch.log(torch.tensor([[0.2, 0.3, 0.1]])))
    torch.testing.assert_close(scores.exp(), torch.tensor([[0.5, 0.1]]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"a": [], "b": "z"}, "The label 'a' has no word"),
        ({"a": ["x", ""], "b": "z"}, "The label 'a' has no word"),
        ({"a": ["x", "x"], "b": "z"}, "Two words of the label 'a'"),
        ({"a": ["x", "z"], "b": "z"}, "The labels 'a' and 'b' are the same tokens"),
    ],
)
def test_words_that_cannot_be_told_apart_are_told(words: dict[str, object], said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        LabelWords.make(["a", "b"], byte_tokenizer(), words=words)  # type: ignore[arg-type]


def test_the_seeds_template_learns_the_tokens_that_inference_meets() -> None:
    template = Template("Tweet text : {text} Label : ")
    words = LabelWords.make(["complaint", "no complaint"], byte_tokenizer(), lead=template.lead)
    read = encode(template.example("Hm"), byte_tokenizer(), 200)["input_ids"]
    assert byte_tokenizer().decode(read).endswith("Label :")
    assert byte_tokenizer().decode(words.token_ids[0]) == " complaint"
