"""Rows are tokenised once: the same afterwards, and only while nothing that matters has changed."""

import csv
from pathlib import Path

import pytest
from tiny import byte_tokenizer

from ptlit.data import ClassificationData, token_cache
from ptlit.data.example import encode_all as really


class Counted:
    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, examples, tokenizer, max_length):
        self.rows += len(examples)
        return really(examples, tokenizer, max_length)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counted:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counted = Counted()
    monkeypatch.setattr("ptlit.data.classification.encode_all", counted)
    with (tmp_path / "many.csv").open("w", newline="") as file:
        rows = [(f"text {i} " + "long " * (i % 9), "ab"[i % 2]) for i in range(2000)]
        csv.writer(file).writerows([("text", "label"), *rows])
    return counted


def data_of(folder: Path, adds_bos: bool = False, **options: object) -> ClassificationData:
    data = ClassificationData(
        tokenizer=byte_tokenizer(adds_bos), path=str(folder / "many.csv"), max_length=64, **options
    )
    data.setup()
    return data


def test_rows_are_tokenised_once(counted: Counted, tmp_path: Path) -> None:
    first = data_of(tmp_path)
    assert counted.rows == 2000
    counted.rows = 0
    again = data_of(tmp_path)
    assert counted.rows == 400  # a split of a few hundred rows is not worth a file
    assert list(again.encoded["train"]) == list(first.encoded["train"])
    assert again.summary() == first.summary() and first.summary()["splits"]["train"]["truncated"] > 0


@pytest.mark.parametrize(
    "change",
    [{"template": "{text}:"}, {"label_words": {"a": " x", "b": " y"}}, {"adds_bos": True}, {"seed": 1}],
)
def test_what_has_changed_is_tokenised_anew(
    counted: Counted, tmp_path: Path, change: dict[str, object]
) -> None:
    data_of(tmp_path)
    counted.rows = 0
    data_of(tmp_path, **change)
    assert counted.rows == 2000


def test_a_broken_file_is_made_anew_and_the_oldest_go(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data_of(tmp_path)
    (file,) = (tmp_path / "cache" / "ptlit" / "tokens").iterdir()
    file.write_bytes(file.read_bytes()[:99])
    assert list(data_of(tmp_path).encoded["train"]) == list(first.encoded["train"])
    monkeypatch.setattr(token_cache, "MOST", 1.5 * file.stat().st_size)
    data_of(tmp_path, template="{text}!")
    assert [each.suffix for each in file.parent.iterdir()] == [".npz"] and not file.exists()
