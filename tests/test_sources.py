"""Every mistake in a user's file is named with its place."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from ptlit.data import sources
from ptlit.data.formats import READERS, read_table
from ptlit.data.rows import Columns, clean_rows
from ptlit.data.sources import read_splits
from ptlit.mistake import UserMistake

COLUMNS = Columns("text", "label")
ROWS = [{"text": "a, b", "label": "x"}, {"text": 'say "hi"\nthere', "label": "y"}]


def rows_of(file, labels=None, on_bad_row="error", encoding=None):
    return cleaned(read_table(file, encoding), COLUMNS, labels, on_bad_row)


def cleaned(table, columns, labels, on_bad_row):
    usable = clean_rows(table, columns, labels)
    rows = list(usable)
    usable.bad.complain(on_bad_row, any_left=bool(rows))
    return rows, usable.bad.count


def write(folder, suffix):
    file = folder / f"data{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    elif suffix == ".json":
        file.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    else:
        mark = "\t" if suffix == ".tsv" else ","
        file.write_text(f'text{mark}label\n"a, b"{mark}x\n"say ""hi""\nthere"{mark}y\n')
    return file


@pytest.mark.parametrize("suffix", READERS)
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    rows, skipped = rows_of(write(tmp_path, suffix))
    assert [{"text": row["text"], "label": row["label"]} for row in rows] == ROWS
    assert skipped == 0


BAD = {
    "empty text": (b"text,label\ngood,x\n  ,x\n", "line 3: empty text"),
    "no label": (b"text,label\ngood,x\nbad,\n", "line 3: no label"),
    "ragged": (b"text,label\ngood,x\nbad,x,y\n", "line 3: 3 fields where the header has 2"),
    "short": (b"text,label\ngood,x\nbad\n", "line 3: 1 fields"),
    "undecodable": (b"text,label\ngood,x\nb\xe4d,x\n", "line 3: bytes that do not fit the encoding"),
    "nul": (b"text,label\ngood,x\nb\0d,x\n", "line 3: a NUL byte"),
    "unknown label": (b"text,label\ngood,x\nbad,z\n", "line 3: the label 'z' is none of x, y"),
    "open quote": (b'text,label\ngood,x\n"bad,x\nalso good,y\n', "line 3: broken CSV"),
    "after a long row": (b'text,label\n"go\n\nod",x\n,x\n', "line 5: empty text"),
}


@pytest.mark.parametrize(("content", "expected"), BAD.values(), ids=BAD)
def test_a_bad_csv_row_is_named_and_can_be_skipped(tmp_path, content, expected):
    file = tmp_path / "mine.csv"
    file.write_bytes(content)
    with pytest.raises(UserMistake, match=expected) as caught:
        rows_of(file, ["x", "y"])
    assert str(file) in str(caught.value) and "1 bad row:" in str(caught.value)
    rows, skipped = rows_of(file, ["x", "y"], on_bad_row="skip")
    assert skipped == 1 and rows[0]["label"] == "x"


def test_a_quote_left_open_costs_one_row_only(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text('text,label\n"bad,x\n' + "good,y\n" * 20)
    rows, skipped = rows_of(file, on_bad_row="skip")
    assert len(rows) == 20 and skipped == 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_text_may_be_as_long_as_a_book(tmp_path, suffix):
    file = tmp_path / f"mine{suffix}"
    mark = "\t" if suffix == ".tsv" else ","
    book = '"' + "A line of it.\n" * 70_000 + 'End."'
    file.write_text(f"text{mark}label\n{book}{mark}x\n{'word ' * 200_000}{mark}y\n")
    rows, _ = rows_of(file)
    assert [(len(row["text"]), row["label"]) for row in rows] == [(len(book) - 2, "x"), (999_999, "y")]


@pytest.mark.parametrize("last", ["good", 'A screen of 15"'])  # which closes the quote
def test_a_quote_left_open_in_a_large_file_costs_one_row_only(tmp_path, last):
    file = tmp_path / "mine.csv"
    count = 4_000 if last == "good" else 100  # 20 MB, or less than a field may hold
    with file.open("w") as rows:
        rows.write('text,label\n"bad,x\n')
        rows.writelines(f"{'good ' * 1_000},y\n" for _ in range(count))
        rows.write(f"{last},y\n")
    records = list(read_table(file).records)
    assert "is a quote left open" in records[0][1] and records[-1][1] == {"text": last, "label": "y"}
    assert all(isinstance(record, dict) for _, record in records[1:])
    assert [number for number, _ in records] == list(range(2, len(file.read_text().splitlines()) + 1))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "bad"', "line 2: broken JSON"),
        (b'["bad"]', "line 2: not a JSON object"),
        (b'{"txt": "bad", "label": "x"}', r"line 2: has no column 'text' \(nearest: 'txt'\)"),
        (b'{"text": "bad", "label": null}', "line 2: no label"),
        (b'{"text": ["bad"], "label": "x"}', "line 2: the text is a list"),
        (b'{"text": "b\xe4d", "label": "x"}', "line 2: bytes that do not fit"),
        (b'{"text": "b\\u0000d", "label": "x"}', "line 2: a NUL byte"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, expected):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b'{"text": "good", "label": 1}\n' + line + b"\n")
    with pytest.raises(UserMistake, match=expected):
        rows_of(file)
    rows, skipped = rows_of(file, on_bad_row="skip")
    assert rows[0]["label"] == "1" and skipped == 1


def test_five_bad_rows_are_shown_and_all_are_counted(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\ngood,x\n" + ",x\n" * 8)
    with pytest.raises(UserMistake, match="8 bad rows.*line 7.*and 3 more") as caught:
        rows_of(file)
    assert "line 8" not in str(caught.value)


def test_all_rows_bad_is_a_mistake_even_when_skipping(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\n,x\n,y\n")
    with pytest.raises(UserMistake, match="No row is left"):
        rows_of(file, on_bad_row="skip")


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("texts,label\na,x\n")
    with pytest.raises(UserMistake, match=r"no column 'text' \(nearest: 'texts'\); set data.text_column"):
        rows_of(file, on_bad_row="skip")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b"text,label\n"])
def test_an_empty_file_is_a_mistake(tmp_path, content):
    file = tmp_path / "mine.csv"
    file.write_bytes(content)
    with pytest.raises(UserMistake, match="mine.csv is empty"):
        rows_of(file)


def test_an_encoding_can_be_named(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_bytes("text,label\nschön,x\n".encode("utf-16"))
    with pytest.raises(UserMistake, match="set data.encoding"):
        rows_of(file)
    assert rows_of(file, encoding="utf-16")[0][0]["text"] == "schön"
    with pytest.raises(UserMistake, match="no encoding"):
        rows_of(file, encoding="utf-99")


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl", "mine.json"])
def test_a_file_without_the_mark_of_its_encoding_is_a_mistake(tmp_path, name):
    file = tmp_path / name
    file.write_bytes("text,label\nschön,x\n".encode("utf-16-le"))
    with pytest.raises(UserMistake, match=f"{name} cannot be read as utf-16 .*BOM.*: set another data.enc"):
        rows_of(file, encoding="utf-16")


@pytest.mark.parametrize("encoding", ["utf-8", "utf8", "UTF-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_is_no_text_where_the_encoding_is_named(tmp_path, encoding):
    for name, content in (
        ("mine.csv", "text,label\na,x\n"),
        ("mine.jsonl", '{"text": "a", "label": "x"}\n'),
        ("mine.json", '[{"text": "a", "label": "x"}]'),
    ):
        (tmp_path / name).write_text("\ufeff" + content, encoding=encoding.removesuffix("-sig"))
        assert [row["text"] for row in rows_of(tmp_path / name, encoding=encoding)[0]] == ["a"]


def test_an_excel_byte_order_mark_is_no_part_of_the_header(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_bytes(b"\xef\xbb\xbftext,label\na,x\n")
    assert rows_of(file)[0][0]["text"] == "a"


def test_columns_without_a_name_do_no_harm(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text(",text,label,,\n0,a,x,,\n1,b,y,,\n")
    assert [(row["text"], row["label"]) for row in rows_of(file)[0]] == [("a", "x"), ("b", "y")]


def test_broken_json_and_parquet_files_are_named(tmp_path):
    for name in ("mine.json", "mine.parquet"):
        (tmp_path / name).write_text("[{")
        with pytest.raises(UserMistake, match=name):
            read_table(tmp_path / name)


def test_a_folder_of_splits(tmp_path):
    for name in ("train.csv", "dev.csv", "test.csv", "notes.csv"):
        (tmp_path / name).write_text(f"text,label\n{name},x\n")
    tables = read_splits(str(tmp_path))
    assert {split: next(iter(table.records))[1]["text"] for split, table in tables.items()} == {
        "train": "train.csv",
        "val": "dev.csv",
        "test": "test.csv",
    }
    (tmp_path / "validation.csv").write_text("text,label\na,x\n")
    with pytest.raises(UserMistake, match="keep one for val"):
        read_splits(str(tmp_path))
    (tmp_path / "train.csv").unlink()
    (tmp_path / "validation.csv").unlink()
    with pytest.raises(UserMistake, match="no training file"):
        read_splits(str(tmp_path))


@pytest.mark.parametrize("path", ["nowhere.csv", "./nowhere"])
def test_a_missing_file_is_a_mistake(path):
    with pytest.raises(UserMistake, match="There is no file"):
        read_splits(path)


def test_a_name_that_is_nothing_at_all_is_one_sentence(monkeypatch):
    import datasets

    def offline(name, subset):
        raise ConnectionError("Couldn't reach 'nowhere' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(sources, "hub_is_reachable", lambda: True)
    with pytest.raises(UserMistake, match="data.path=nowhere is no file or folder here.*Couldn't reach"):
        read_splits("nowhere")


def test_an_unreachable_hub_is_told_at_once(monkeypatch):
    monkeypatch.setattr(sources, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserMistake, match="data.path=nowhere is no file or folder here.*cannot be reached"):
        read_splits("nowhere")


def test_hub_labels_get_their_names_and_secret_labels_are_no_split(monkeypatch):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    secret = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features)
    found = datasets.DatasetDict({"train": rows, "validation": rows, "test": secret})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: found)
    monkeypatch.setattr(sources, "hub_is_reachable", lambda: True)
    tables = read_splits("somebody/something")
    assert list(tables) == ["train", "val"]
    assert [record["label"] for _, record in tables["train"].records] == ["yes", "no"]


def test_raft_comes_out_of_the_files_that_the_hub_made_of_it(tmp_path, monkeypatch):
    """A script of old, which `datasets` refuses to run; its test rows are all "Unlabeled"."""
    import datasets

    features = datasets.Features(
        {
            "Tweet text": datasets.Value("string"),
            "ID": datasets.Value("int32"),
            "Label": datasets.ClassLabel(names=["Unlabeled", "complaint", "no complaint"]),
        }
    )
    for subset in ("twitter_complaints", "other"):
        for split, labels in (("train", [2, 1, 0]), ("test", [0, 0])):
            rows = {
                "Tweet text": [f"{subset} {split}"] * len(labels),
                "ID": range(len(labels)),
                "Label": labels,
            }
            file = tmp_path / "raft" / subset / split / "0000.parquet"
            file.parent.mkdir(parents=True)
            datasets.Dataset.from_dict(rows, features).to_parquet(file)
    load = datasets.load_dataset

    def load_from_the_hub(name, subset=None, *, data_dir=None, revision=None):
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found raft.py")
        assert (name, revision) == ("ought/raft", "refs/convert/parquet")
        return load(str(tmp_path / "raft"), data_dir=data_dir, cache_dir=tmp_path / "cache")

    monkeypatch.setattr(datasets, "load_dataset", load_from_the_hub)
    monkeypatch.setattr(sources, "hub_is_reachable", lambda: True)
    tables = read_splits("ought/raft", subset="twitter_complaints", label_column="Label")
    assert list(tables) == ["train"]
    columns = Columns("Tweet text", "Label")
    with pytest.raises(UserMistake, match="1 bad row: row 3: no label"):
        cleaned(tables["train"], columns, None, "error")
    rows, skipped = cleaned(tables["train"], columns, None, "skip")
    assert [row["label"] for row in rows] == ["no complaint", "complaint"] and skipped == 1
    assert {row["text"] for row in rows} == {"twitter_complaints train"}
