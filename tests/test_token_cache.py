"""Rows are tokenised once: the same afterwards, and only while nothing that matters has changed."""

import csv
import json
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from chats import SMOLLM2, chat_tokenizer, dialogue
from tiny import byte_tokenizer

from ptlit.data import ChatData, ClassificationData, token_cache
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


def dialogues_of(folder: Path, template: str = SMOLLM2, **options: object) -> ChatData:
    tokenizer = chat_tokenizer("smollm2")
    tokenizer.chat_template = template
    data = ChatData(tokenizer=tokenizer, path=str(folder / "many.jsonl"), max_length=400, **options)
    data.setup()
    return data


def test_dialogues_are_tokenised_once(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptlit.data.chat.encode_all", counted)
    monkeypatch.setattr(token_cache, "LEAST", 30)
    rows = [json.dumps({"messages": dialogue(1 + i % 7, f"no. {i}")}) for i in range(60)]
    (tmp_path / "many.jsonl").write_text("\n".join(rows))
    first = dialogues_of(tmp_path)
    counted.rows = 0
    again = dialogues_of(tmp_path)
    few = counted.rows
    assert list(again.encoded["train"]) == list(first.encoded["train"]) and few < 30
    assert again.summary() == first.summary() and first.summary()["splits"]["train"]["truncated"] > 0
    for change in (
        {"learn": "last_reply"},
        {"system": "Be brief."},
        {"template": SMOLLM2 + "{# another #}"},
        {"template_options": {"a": 1}},
    ):
        counted.rows = 0
        dialogues_of(tmp_path, **change)
        assert counted.rows > few, change


def test_a_template_that_tells_the_time_is_written_anew(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "LEAST", 30)
    (tmp_path / "many.jsonl").write_text(
        "\n".join(json.dumps({"messages": dialogue(1, f"no. {i}")}) for i in range(60))
    )
    telling = "{{ strftime_now('%d %b %Y') }}" + SMOLLM2
    first = dialogues_of(tmp_path, telling)
    assert list(dialogues_of(tmp_path, telling).encoded["train"]) == list(first.encoded["train"])

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=1)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert list(dialogues_of(tmp_path, telling).encoded["train"]) != list(first.encoded["train"])


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
