"""Words left out of training texts: of the text alone, others in every epoch, the same for the same seed."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import pytest
from tiny import byte_tokenizer

from ptlit.data import Batch, ClassificationData
from ptlit.data.fewer_words import fewer_words
from ptlit.mistake import UserMistake

TOKENIZER = byte_tokenizer()
TEMPLATE = "{soft:3}By {author} : {text}\nMood:"
WORDS = {"bad": "b", "good": "gg"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "mine.csv"
    lines = [f"w{i}a w{i}b  w{i}c w{i}d,{'good' if i % 2 else 'bad'},An Na {i}" for i in range(40)]
    path.write_text("text,label,author\n" + "\n".join(lines) + "\n")
    return path


def data_of(file: Path, **options: Any) -> ClassificationData:
    plain = {"template": TEMPLATE, "label_words": WORDS, "batch_size": 4, "max_length": 64, "seed": 7}
    data = ClassificationData(tokenizer=TOKENIZER, path=str(file), **(plain | options))
    data.setup()
    return data


Texts = dict[int, tuple[str, str]]  # of each row of the split: what is read and what is learned


def texts(batches: Iterable[Batch]) -> Texts:
    found = {}
    for batch in batches:
        for row, ids, labels in zip(batch["row"], batch["input_ids"], batch["labels"], strict=True):
            assert sorted(ids[ids < 0].tolist()) == [-3, -2, -1]
            read, learned = ids[(labels == -100) & (ids > 0)], ids[labels != -100]  # 0 is padding
            found[int(row)] = (TOKENIZER.decode(read), TOKENIZER.decode(learned))
    return found


def epoch(data: ClassificationData, number: int) -> Texts:
    loader = data.train_dataloader()
    loader.batches.set_epoch(number)
    return texts(loader)


def test_the_text_alone_loses_words(file: Path) -> None:
    data, whole = data_of(file, drop_words=0.4), data_of(file)
    assert data.encoded == whole.encoded
    shown, expected, lost = [epoch(data, number) for number in range(20)], epoch(whole, 0), []
    for each in shown:
        assert each.keys() == expected.keys()
        for row, (read, learned) in each.items():
            text = whole.rows["train"][row]["text"]
            before, behind = expected[row][0].split(text)
            assert read.startswith(before) and read.endswith(behind) and learned == expected[row][1]
            left = read.removeprefix(before).removesuffix(behind).split()
            assert left and left == [word for word in text.split() if word in left]
            lost.append(1 - len(left) / len(text.split()))
    never_all = 0.4**4 / 4  # one of four words then stays
    assert numpy.mean(lost) == pytest.approx(0.4 - never_all, abs=0.02)
    assert shown[0] != shown[1] == epoch(data_of(file, drop_words=0.4), 1)
    assert shown[1] == epoch(data_of(file, drop_words=0.4, num_workers=1), 1)
    assert shown[1] == epoch(pickle.loads(pickle.dumps(data)), 1)  # as another process may get it
    assert shown[1] != epoch(data_of(file, drop_words=0.4, seed=8), 1)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_what_is_judged_stays_whole(file: Path, split: str) -> None:
    judged = texts(data_of(file, drop_words=0.9).eval_dataloader(split))
    assert judged == texts(data_of(file).eval_dataloader(split))


def test_nothing_to_leave_out_costs_nothing(file: Path) -> None:
    data = data_of(file)
    assert data.train_dataloader().dataset is data.encoded["train"]


def test_long_texts_are_cut_behind_what_is_left(file: Path) -> None:
    data = data_of(file, drop_words=0.5, max_length=33)
    rows = data.train_dataloader().dataset
    for row in rows:  # type: ignore[attr-defined]
        assert sum(token >= 0 for token in row["input_ids"]) <= 33
    assert len(rows[0:3]) == 3 and rows[2] == rows[0:3][2]


@pytest.mark.parametrize("text", ["", "   ", "one", "one two\tthree\n four"])
def test_some_word_always_stays(text: str) -> None:
    for seed in range(20):
        left = fewer_words(text, 0.999, numpy.random.default_rng(seed)).split()
        assert len(left) == min(1, len(text.split())) and set(left) <= set(text.split())


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_none(file: Path, rate: float) -> None:
    with pytest.raises(UserMistake, match="data.drop_words=.* must be a number from 0 up to, not including"):
        data_of(file, drop_words=rate)
