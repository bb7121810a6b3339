"""Files broken in every way: a sentence that names file and row, or batches with every good row in them."""

import csv
import io
import json
import math
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from chats import chat_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer

from ptlit.data import ChatData, ClassificationData
from ptlit.data.example import NOT_LEARNED
from ptlit.mistake import UserMistake

TOKENIZER, CHAT_TOKENIZER = byte_tokenizer(), chat_tokenizer()
LABELS = ("bad", "good")
PLAIN = [{"text": f"plain row {i}", "label": LABELS[i % 2], "remark": ""} for i in range(12)]
bounded = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@dataclass(frozen=True)
class Line:
    """What stands in the file for one row, and the row that it should become: None if it is bad."""

    written: Any
    row: tuple | None

    def __repr__(self) -> str:
        return f"{str(self.written)[:100]} -> {str(self.row)[:60]}"


MISSING = object()
ODD_TEXTS = [
    "",
    "  ",
    "\0",
    "a\0b",
    "é" * 40,
    "x" * 100_000,
    '"',
    'say "hi", you',
    "two\nlines",
    "a\r\nb",
    "\r",
]
ODD_TEXTS += [
    "\u2028",
    "\ufeff",
    "{text}",
    "{",
    "<eos>",
    "'",
    "\\",
    "\t",
    "NaN",
    "null",
    "\x1c",
    "e\u0301 👩‍👩‍👧",
]
texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
labels = st.sampled_from(["good", "bad", " good\n", "ugly", "", "Good", "good\0", "1", "x" * 1000])
things = st.sampled_from(
    [None, 7, -1.5, 2.0, True, math.nan, math.inf, [], ["a"], {}, {"a": 1}, "\ud800", 10**40, MISSING]
)


def expected(text: Any, label: Any, remark: Any = "") -> tuple[str, str] | None:
    said = [as_said(value) for value in (text, label, remark)]
    if MISSING in (text, label) or said[0] is None or said[1] is None:
        return None
    if any(isinstance(each, str) and re.search("[\0\ud800-\udfff]", each) for each in said):
        return None
    row = said[0].strip(), said[1].strip()
    return row if row[0] and row[1] in LABELS else None


def as_said(value: Any) -> str | None:
    if value is None or value is MISSING or isinstance(value, list | dict | bytes) or value != value:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def table_lines(text_values: st.SearchStrategy, raw: list[bytes] | None = None) -> st.SearchStrategy:
    """Rows among plain ones; `raw` are lines that no row can be read from."""

    def line(values: tuple[Any, Any, Any]) -> Line:
        text, label, remark = values
        return Line(
            dict(zip(("text", "label", "remark"), values, strict=True)), expected(text, label, remark)
        )

    label_values = labels | text_values if text_values is not texts else labels
    rows = st.tuples(text_values, label_values, st.sampled_from(["", "a,b", "\0"])).map(line)
    rows |= st.tuples(texts, st.sampled_from(LABELS), st.just("")).map(line)
    if raw is not None:
        rows |= st.sampled_from([Line(each, None) for each in raw])
    plain = [Line(row, (row["text"], row["label"])) for row in PLAIN]
    return st.lists(rows, max_size=6).flatmap(lambda some: st.permutations(plain + some))


def judged(name: str, content: bytes, lines: list[Line], places: list[str], make: Any, rows_of: Any) -> None:
    """Both ways of taking bad rows."""
    good = [line.row for line in lines if line.row is not None]
    bad = [place for line, place in zip(lines, places, strict=True) if line.row is None]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        if bad:
            with pytest.raises(UserMistake) as caught:
                make(file, "error").setup()
            said = str(caught.value)
            count = "1 bad row: " if len(bad) == 1 else f"{len(bad)} bad rows: "
            assert f"{file} has {count}{bad[0]}: " in said and "\n" not in said
        data = make(file, "skip")
        data.setup()
    assert rows_of(data) == Counter(good)
    assert sum(data.skipped.values()) == len(bad)


def labelled(file: Path, on_bad_row: str) -> ClassificationData:
    words = {name: " " + name for name in LABELS}
    return ClassificationData(
        tokenizer=TOKENIZER, path=str(file), label_words=words, on_bad_row=on_bad_row, max_length=64
    )


def labelled_rows(data: ClassificationData) -> Counter:
    """As they stand in the batches."""
    found: Counter = Counter()
    for split, rows in data.rows.items():
        seen = 0
        for batch in data.eval_dataloader(split):
            for i, index in enumerate(batch["row"].tolist()):
                row, name = rows[index], LABELS[batch["label"][i]]
                learned = batch["labels"][i][batch["labels"][i] != NOT_LEARNED]
                ids = batch["input_ids"][i][batch["attention_mask"][i] == 1]
                text = TOKENIZER.decode(ids)
                assert len(ids) <= 64 and TOKENIZER.decode(learned) == " " + name
                whole = f"Tweet: {row['text']}\nSentiment: {name}"
                kept = text.removesuffix(f"\nSentiment: {name}")
                assert text == whole or (len(ids) > 60 and whole.startswith(kept))
                found[row["text"], LABELS[row["label"]]] += 1
                seen += 1
        assert seen == len(rows)
    return found


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv"])
def test_tables_of_text(name: str) -> None:
    mark = "," if name.endswith("csv") else "\t"
    raw = [b"alone", b"a,b,c,d,e".replace(b",", mark.encode()), b"\xff\xfe", b"", b" "]
    raw += [each.replace(b",", mark.encode()) for each in (b"caf\xe9,good,", b"a,good,\xff", b",,", b"a,,")]

    @bounded
    @given(table_lines(texts, raw))
    def holds(lines: list[Line]) -> None:
        lines = [line for line in lines if line.written != b""] + [Line(b'"open', None)] * (len(lines) % 2)
        content, places = f"text{mark}label{mark}remark\n".encode(), []
        for line in lines:
            before = len(re.findall(rb"\r\n|\r|\n", content))
            places.append(f"line {1 + before}")
            written = line.written
            if isinstance(written, dict):
                cells = io.StringIO(newline="")
                csv.writer(cells, delimiter=mark).writerow(written.values())
                written = cells.getvalue().removesuffix("\r\n").encode()
            content += written + b"\n\n"[: 1 + len(content) % 2]
        judged(name, content, lines, places, labelled, labelled_rows)

    holds()


def as_json(record: Any) -> str:
    if isinstance(record, dict):
        record = {key: value for key, value in record.items() if value is not MISSING}
    return json.dumps(record, ensure_ascii="\\ud800" in str(record))  # half a character, escaped


RAW_JSON = [b"{", b"[]", b"7", b"null", b'"text"', b"NaN", b"{}", b"[" * 5_000, b"9" * 5_000, b"\0", b"\xff"]
RAW_JSON += [b'{"text": "b\xe4d", "label": "good"}', b'{"text": "bad", "label": "good"', b'{"text": "a\0"}']
RAW_JSON += [
    b'{"text": %s, "label": "good"}' % (b"9" * 5_000),
    b'{"text": %s, "label": "bad"}' % (b"[" * 5_000),
]


def written_json(line: Line) -> bytes:
    if isinstance(line.written, bytes):
        return line.written
    return as_json(line.written).encode("utf-8", "surrogatepass")


@bounded
@given(table_lines(texts | things, RAW_JSON))
def test_json_lines(lines: list[Line]) -> None:
    content = b"".join(written_json(line) + b"\r\n\n" for line in lines)
    places = [f"line {1 + 2 * i}" for i in range(len(lines))]
    judged("mine.jsonl", content, lines, places, labelled, labelled_rows)


@bounded
@given(
    table_lines(
        texts | things, [b"[]", b"7", b"null", b'"text"', b"{}", b'{"text": "b\xe4d", "label": "good"}']
    )
)
def test_json(lines: list[Line]) -> None:
    content = b"[" + b",\n".join(map(written_json, lines)) + b"]"
    places = [f"row {1 + i}" for i in range(len(lines))]
    judged("mine.json", content, lines, places, labelled, labelled_rows)


@bounded
@given(table_lines(st.one_of(texts, st.none(), st.just(b"\xff"))), st.booleans())
def test_parquet(lines: list[Line], with_dates: bool) -> None:
    """Bytes in a column of text, where no other program would let them in."""
    columns = {
        name: pyarrow.array([as_bytes(line.written[name]) for line in lines], pyarrow.binary()).view(
            pyarrow.string()
        )
        for name in ("text", "label", "remark")
    }
    if with_dates:  # beyond what Python can hold
        columns["date"] = pyarrow.array([2**31 - 1] * len(lines), pyarrow.int32()).view(pyarrow.date32())
        lines = [Line(line.written, None) for line in lines]
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, row_group_size=5)
    if with_dates:
        with pytest.raises(UserMistake, match="mine.parquet has .* row 1: .*No row is left"):
            judged("mine.parquet", sink.getvalue(), [], [], labelled, labelled_rows)
        return
    places = [f"row {1 + i}" for i in range(len(lines))]
    judged("mine.parquet", sink.getvalue(), lines, places, labelled, labelled_rows)


def as_bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_any_bytes_at_all(suffix: str) -> None:
    """Whole files of them, and good files in which some were changed."""
    good = whole_file(suffix)

    @bounded
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        content = bytearray(good)
        if data.draw(st.booleans()):
            content = bytearray(data.draw(st.binary(max_size=60)))
        else:
            for place in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=5)):
                content[place] = data.draw(st.sampled_from([0, 9, 10, 13, 34, 44, 92, 123, 125, 255]))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"mine{suffix}"
            file.write_bytes(bytes(content))
            for on_bad_row in ("error", "skip"):
                try:
                    found = labelled(file, on_bad_row)
                    found.setup()
                except UserMistake as mistake:
                    assert str(file) in str(mistake) and "\n" not in str(mistake)
                else:
                    assert labelled_rows(found).total() > 0

    holds()


def whole_file(suffix: str) -> bytes:
    if suffix == ".parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PLAIN), sink)
        return sink.getvalue()
    if suffix == ".json":
        return json.dumps(PLAIN, indent=1).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in PLAIN).encode()
    mark = "," if suffix == ".csv" else "\t"
    return "".join(mark.join(row) + "\n" for row in [PLAIN[0], *(row.values() for row in PLAIN)]).encode()


def turns(*said: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": each} for i, each in enumerate(said)]


PLAIN_CHATS = [turns(f"Say {i}!", f"{i}.") for i in range(12)]


@st.composite
def dialogues(draw: st.DrawFn) -> Line:
    """A dialogue with at most one thing wrong."""
    words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(str.strip)
    messages = turns(*draw(st.lists(words, min_size=2, max_size=6)))
    if draw(st.booleans()):
        messages = [{"role": "system", "content": draw(words)}, *messages]
    kept = messages[:-1] if messages[-1]["role"] == "user" else messages
    row: Any = tuple((each["role"], each["content"].strip()) for each in kept)
    place = draw(st.integers(0, len(messages) - 1))
    match draw(st.integers(0, 6)):
        case 0:
            messages[place]["content"] = draw(things.filter(lambda each: each is not MISSING) | st.just("\0"))
            row = None
        case 1:
            messages[place]["role"] = draw(
                things.filter(lambda each: each is not MISSING) | st.just("nobody")
            )
            row = None
        case 2:
            del messages[place][draw(st.sampled_from(["role", "content"]))]
            row = None
        case 3:
            messages = messages[:1]
            row = None
        case 4:
            messages = draw(st.sampled_from([[], {}, "text", 7, None, [[]], [None], [7]]))
            row = None
    return Line({"messages": messages}, row)


NO_CHATS = [Line(each, None) for each in [*RAW_JSON, b'{"text": "a", "label": "b"}']]


@bounded
@given(
    st.lists(dialogues() | st.sampled_from(NO_CHATS), max_size=6).flatmap(
        lambda some: st.permutations(
            [*(Line({"messages": each}, as_row(each)) for each in PLAIN_CHATS), *some]
        )
    )
)
def test_dialogues(lines: list[Line]) -> None:
    content = b"".join(written_json(line) + b"\n" for line in lines)
    places = [f"line {1 + i}" for i in range(len(lines))]
    judged("mine.jsonl", content, lines, places, chatting, chat_rows)


def test_a_dialogue_of_100_000_characters() -> None:
    rows = [*PLAIN_CHATS, *(turns(f"Count to {i}!", "1 2 3") for i in range(40)), turns("x" * 100_000, "Hi.")]
    lines = [Line({"messages": each}, as_row(each) if len(str(each)) < 1000 else None) for each in rows]
    content = b"".join(written_json(line) + b"\n" for line in lines)
    places = [f"line {1 + i}" for i in range(len(lines))]
    judged("mine.jsonl", content, lines, places, chatting, chat_rows)


def as_row(messages: list[dict[str, Any]]) -> tuple:
    return tuple((each["role"], each["content"].strip()) for each in messages)


def chatting(file: Path, on_bad_row: str) -> ChatData:
    return ChatData(tokenizer=CHAT_TOKENIZER, path=str(file), on_bad_row=on_bad_row, max_length=2000)


def chat_rows(data: ChatData) -> Counter:
    found: Counter = Counter()
    for split, rows in data.rows.items():
        replies: Counter = Counter()
        for batch in data.eval_dataloader(split):
            for i, index in enumerate(batch["row"].tolist()):
                learned = CHAT_TOKENIZER.decode(batch["labels"][i][batch["labels"][i] != NOT_LEARNED])
                replies[index] += learned.count("<|im_end|>")
        for index, row in enumerate(rows):
            assert replies[index] == sum(each["role"] == "assistant" for each in row["messages"])
            found[as_row(row["messages"])] += 1
    return found
