"""Files answered row by row: in order, in any format, whatever the batches, and after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch
from peft import PeftModel
from runs import TWEETS, call, train_at
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptlit import evaluate
from ptlit.data import Template
from ptlit.data.outputs import GROUP, ColumnTypes, write_rows
from ptlit.data.texts import TextFile
from ptlit.predict import main
from ptlit.unfinished import Unfinished, contents


def read(path: Path) -> list[dict]:
    match path.suffix:
        case ".parquet":
            return pyarrow.parquet.read_table(path).to_pylist()
        case ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def predict(place: Path, *words: str, run: str = "run", output: str = "out.jsonl") -> list[dict]:
    call(place, main, f"run={run}", f"output={output}", "overwrite=true", *words)
    return read(place / output)


@pytest.fixture(scope="module")
def uneven(place: Path) -> Path:
    """A run whose labels are of different lengths, and a file with texts that have to be cut."""
    words = "data.label_words={bad: ' bad', good: ' very good'}"
    train_at(place, "uneven", "experiment=prefix_tuning", words)
    rows = [(text * (1 + i % 5), label) for i, (text, label) in enumerate(TWEETS)]
    with (place / "long.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return place / "uneven"


@pytest.mark.parametrize(
    "words", [(), ("batch_size=1",), ("batch_size=7", "chunk_size=10"), ("batch_size=500",)]
)
def test_answers_are_those_of_evaluate(place: Path, uneven: Path, words: tuple[str, ...]) -> None:
    judged = uneven / "evaluation" / "long.csv" / "predictions.csv"
    if not judged.exists():
        call(place, evaluate.main, "run=uneven", "input=long.csv")
    answers = predict(place, "input=long.csv", *words, run="uneven")
    expected = read(judged)
    assert [row["text"] for row in answers] == [row["text"] for row in expected]
    for answer, row in zip(answers, expected, strict=True):
        for name in ("bad", "good"):
            key = f"probability_{name}"
            assert answer[key] == pytest.approx(float(row[key]), abs=1e-5)
        assert answer["prediction"] == row["prediction"] or abs(answer["probability_bad"] - 0.5) < 1e-4


def test_answers_are_those_of_peft(place: Path, trained: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(place / "lm")
    tokenizer = AutoTokenizer.from_pretrained(place / "lm")
    peft = PeftModel.from_pretrained(lm, str(trained / "adapter")).eval()
    for row in predict(place, "input=tweets.csv")[::20]:
        scores = []
        for name in ("bad", "good"):
            text, label = tokenizer(row["text"])["input_ids"], tokenizer(f" {name}")["input_ids"]
            with torch.no_grad():
                logits = peft(input_ids=torch.tensor([[*text, *label]])).logits[0, -len(label) - 1 : -1]
            scores.append(logits.log_softmax(-1)[range(len(label)), label].sum())
        chances = torch.stack(scores).softmax(0).tolist()
        assert [row["probability_bad"], row["probability_good"]] == pytest.approx(chances, abs=1e-4)


ODD = [
    {"text": "one", "count": 1, "tags": ["a"], "when": None},
    {"text": 'two, "quoted"\nlines', "count": 2.5, "more": {"x": 1}},
    {"text": "drei – für", "count": None, "tags": "b", "flag": True},
]


def test_columns_are_kept_in_every_format(place: Path, trained: Path) -> None:
    (place / "odd.jsonl").write_text("\n".join(json.dumps(row) for row in ODD))
    lines = predict(place, "input=odd.jsonl")
    assert [
        {key: row[key] for key in row if key in given} for row, given in zip(lines, ODD, strict=True)
    ] == ODD

    table = predict(place, "input=odd.jsonl", output="odd.parquet")
    types = {each.name: each.type for each in pyarrow.parquet.read_schema(place / "odd.parquet")}
    assert list(types) == [
        *("text", "count", "tags", "when", "more", "flag"),
        *("prediction", "probability_bad", "probability_good"),
    ]
    assert types["count"] == pyarrow.float64() and types["flag"] == pyarrow.bool_()
    assert [row["tags"] for row in table] == ['["a"]', None, "b"]
    assert [row["more"] for row in table] == [None, '{"x": 1}', None]
    assert [row["text"] for row in table] == [row["text"] for row in ODD]

    again = predict(place, "input=odd.jsonl", output="odd.tsv")
    assert [row["text"] for row in again] == [row["text"] for row in ODD]
    assert [row["count"] for row in again] == ["1", "2.5", ""]
    assert [float(row["probability_bad"]) for row in again] == pytest.approx(
        [row["probability_bad"] for row in lines]
    )


def test_columns_without_a_name_are_kept(place: Path, trained: Path) -> None:
    """An index that pandas wrote, and the commas that Excel leaves at the end."""
    (place / "unnamed.csv").write_text(",text,title,,\n0,x 0,t,p0,q0\n1,x 1,t,,\n")
    answers = predict(place, "input=unnamed.csv", output="unnamed_out.csv")
    kept = [list(row.values())[:5] for row in answers]
    assert kept == [["0", "x 0", "t", "p0", "q0"], ["1", "x 1", "t", "", ""]]
    assert list(answers[0]) == ["", "text", "title", "unnamed 4", "unnamed 5", "prediction", *CHANCES]


def test_types_of_parquet_are_kept(place: Path, trained: Path) -> None:
    day = pyarrow.array([1, 2, None], pyarrow.date32())
    nested = pyarrow.array([[1], [], None], pyarrow.list_(pyarrow.int8()))
    source = pyarrow.table({"text": ["a b", "c d", "e f"], "day": day, "nested": nested})
    pyarrow.parquet.write_table(source, place / "typed.parquet")
    predict(place, "input=typed.parquet", output="typed_out.parquet")
    kept = pyarrow.parquet.read_table(place / "typed_out.parquet")
    assert kept.select(source.column_names).equals(source)
    assert kept.schema.field("probability_bad").type == pyarrow.float32()
    assert predict(place, "input=typed.parquet")[0]["day"] == "1970-01-02"


@pytest.mark.parametrize("is_turned", [False, True])
def test_long_numbers_and_fractions_far_apart_are_text(tmp_path: Path, is_turned: bool) -> None:
    """As they are close together: no number of Parquet's holds both."""
    ids = [2**53 + 1 + 2 * i for i in range(GROUP)] + [i + 0.5 for i in range(GROUP)]
    rows = [{"id": each, "small": int(each) % 7 if each > GROUP else 0.5} for each in ids]
    columns = ColumnTypes()
    for row in rows[::-1] if is_turned else rows:
        columns.see(row)
    write_rows(tmp_path / "out.parquet", columns.types(), rows)
    written = read(tmp_path / "out.parquet")
    assert [row["id"] for row in written] == [str(each) for each in ids]
    assert [row["small"] for row in written] == [float(row["small"]) for row in rows]


def test_bad_rows_keep_their_place(place: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    lines = ["text,note", "one,a", ",b", "two,c", "three", 'four,"d', "five,e"]
    (place / "bad.csv").write_text("\n".join(lines))
    with pytest.raises(
        SystemExit, match=r"3 bad rows: line 3: empty text; line 5: 1 fields .*; line 6: broken CSV"
    ):
        predict(place, "input=bad.csv")
    capsys.readouterr()
    answers = predict(place, "input=bad.csv", "on_bad_row=skip", "chunk_size=1", output="bad_out.csv")
    assert [row["text"] for row in answers] == ["one", "", "two", "", "", "five"]
    assert [row["prediction"] == "" for row in answers] == [False, True, False, True, True, False]
    assert answers[1] == dict.fromkeys(answers[1], "") | {"note": "b"}
    assert "without an answer: 3 bad rows: line 3: empty text" in capsys.readouterr().out


def test_the_template_asks_for_its_columns(place: Path, trained: Path) -> None:
    (place / "topics.csv").write_text(
        "\n".join(["text,label,topic", *(f"t {i},{'ab'[i % 2]},x{i % 3}" for i in range(40))])
    )
    words = ["data.path=topics.csv", "data.template='{topic}: {text}'", "trainer.max_steps=1"]
    train_at(place, "topical", "experiment=prompt_tuning", *words)
    assert len(predict(place, "input=topics.csv", run="topical")) == 40
    with pytest.raises(SystemExit, match="has no column 'topic' .*, which the template names"):
        predict(place, "input=tweets.csv", run="topical")


def test_a_row_that_leaves_no_room_for_its_text_is_a_bad_row(place: Path, trained: Path) -> None:
    rows = [{"text": f"t {i}", "label": "ab"[i % 2], "context": "ctx "} for i in range(40)]
    (place / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["data.path=short.jsonl", "data.template='{context}: {text}'", "trainer.max_steps=1"]
    train_at(place, "in_context", "experiment=prompt_tuning", *words)
    rows[20]["context"] *= 600
    (place / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sentence = "1 bad row: line 21: with 'context' it takes 2,404 tokens without any text, data.max_length=64"
    with pytest.raises(SystemExit, match=f"{sentence}. Mend them or set on_bad_row=skip"):
        predict(place, "input=long.jsonl", "chunk_size=8", run="in_context", output="roomy.jsonl")
    assert not list(place.glob("roomy*"))
    skip = ["input=long.jsonl", "on_bad_row=skip"]
    answers = predict(place, *skip, "chunk_size=8", run="in_context")
    assert [row["text"] for row in answers] == [row["text"] for row in rows]
    assert [i for i, row in enumerate(answers) if row["prediction"] is None] == [20]
    with pytest.raises(SystemExit, match=sentence):
        call(place, evaluate.main, "run=in_context", "input=long.jsonl")
    call(place, evaluate.main, "run=in_context", *skip)
    judged = read(place / "in_context" / "evaluation" / "long.jsonl" / "predictions.csv")
    expected = [row for i, row in enumerate(answers) if i != 20]
    for answer, row in zip(expected, judged, strict=True):
        assert answer["probability_a"] == pytest.approx(float(row["probability_a"]), abs=1e-5)


CHANCES = ("probability_bad", "probability_good")


def test_a_killed_run_goes_on_where_it_was(place: Path, trained: Path) -> None:
    with (place / "many.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "n"), *((text, i) for i, (text, _) in enumerate(TWEETS * 10))])
    words = ["run=run", "input=many.csv", "chunk_size=50", "batch_size=4"]
    whole = predict(place, *words[1:], output="whole.parquet")
    process = subprocess.Popen(
        [sys.executable, "-m", "ptlit.predict", *words, "output=cut.parquet"],
        cwd=place,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder, deadline = place / "cut.parquet.unfinished", time.monotonic() + 120
    while not (folder / "00000002.npy").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "00000002.npy").exists() and not (place / "cut.parquet").exists()
    call(place, main, *words, "output=cut.parquet")
    resumed = read(place / "cut.parquet")
    assert [{**row, **dict.fromkeys(CHANCES)} for row in resumed] == [
        {**row, **dict.fromkeys(CHANCES)} for row in whole
    ]
    for chance in CHANCES:  # another process may round the last bit differently
        assert [row[chance] for row in resumed] == pytest.approx([row[chance] for row in whole], rel=1e-4)
    assert not folder.exists() and not list(place.glob(".cut*"))


def test_done_chunks_are_not_done_again_unless_anything_changed(place: Path, trained: Path) -> None:
    """A chunk that is plainly wrong tells whether it was used."""
    words = ["run=run", "input=tweets.csv", "chunk_size=50", "output=known.jsonl"]
    first = predict(place, *words[1:3], output="known.jsonl")
    (place / "known.jsonl").unlink()
    plan = {
        "checkpoints": [contents(trained / "checkpoints" / "best.ckpt")],
        "configs": [contents(trained / "config.yaml")],
        "names": None,
        "input": contents(place / "tweets.csv"),
        "run_column": None,
        "text_column": "text",
        "encoding": None,
        "chunk_size": 50,
    }
    for changed in (False, True):
        with pytest.raises(InterruptedError), Unfinished(place / "known.jsonl", plan) as unfinished:
            for chunk in (0, 1, 2):
                rows = 20 if chunk == 2 else 50
                unfinished.put(chunk, numpy.tile(numpy.float32([0.25, 0.75]), (rows, 1)))
            raise InterruptedError
        call(place, main, *words, *(["checkpoint=last"] if changed else []), "overwrite=true")
        answers = read(place / "known.jsonl")
        assert ({row["probability_bad"] for row in answers} == {0.25}) is not changed
    assert [row["text"] for row in answers] == [row["text"] for row in first]


def test_the_keys_that_a_mistake_names_are_taken(
    place: Path, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    (place / "latin.csv").write_bytes("text\nschön\nwell\n".encode("latin-1"))
    words = ["run=run", "input=latin.csv", "output=latin.jsonl"]
    for more, remedy in (
        (["text_column=txt"], "; set text_column."),
        (["encoding=utf-99"], "encoding='utf-99' is no encoding that Python knows."),
        (["encoding=utf-16"], ": set another encoding, such as utf-16-le."),
        ([], "line 2: bytes that do not fit the encoding; set encoding if the file is not utf-8. Mend them"),
    ):
        with pytest.raises(SystemExit) as end:
            call(place, main, *words, *more)
        assert remedy in str(end.value) and "data." not in str(end.value)
    call(place, main, *words, "on_bad_row=skip")
    assert "; set encoding if the file is not utf-8" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    file = TextFile(tmp_path / "large.jsonl", {"": Template("{text}")})
    file.path.write_text("".join(json.dumps({"text": f"{i} " * 100}) + "\n" for i in range(10_000)))
    assert file.path.stat().st_size > 5_000_000
    tracemalloc.start()
    survey = file.survey(500)
    write_rows(tmp_path / "copy.parquet", survey.columns.types(), (record for _, record, _ in file.rows()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert survey.rows == 10_000 and peak < 3_500_000, peak


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["input=gone.csv", "output=o.csv"], "input=gone.csv: there is no such file"),
        (["input=lm/config.json", "output=o.csv"], "must hold a JSON list of objects"),
        (["input=lm/model.safetensors", "output=o.csv"], "is of no known format"),
        (
            ["input=tweets.csv", "output=o.xlsx"],
            "output=o.xlsx: its name must end in .csv, .tsv, .jsonl, .parquet",
        ),
        (["input=tweets.csv", "output=tweets.csv"], "output=tweets.csv exists: give overwrite=true"),
        (["input=tweets.csv", "output=tweets.csv", "overwrite=true"], "output=tweets.csv is the input"),
        (["input=tweets.csv", "output=lm"], "its name must end in"),
        (["input=tweets.csv", "output=tweets.csv/o.csv"], "is no place for a file"),
        (
            ["input=tweets.csv", "output=o.csv", "text_column=txt"],
            "has no column 'txt' .nearest: 'text'.*text_column",
        ),
        (["input=taken.csv", "output=o.csv"], "has a column 'prediction' already"),
        (["input=empty.csv", "output=o.csv"], "is empty"),
        (["input=tweets.csv", "output=o.csv", "batch_size=0"], "batch_size=0 must be at least 1"),
        (["input=tweets.csv", "output=o.csv", "overwrite=maybe"], "overwrite=maybe must be true or false"),
        (["output=o.csv"], "input has no value: give input="),
    ],
)
def test_mistakes_are_one_sentence(place: Path, trained: Path, words: list[str], sentence: str) -> None:
    (place / "taken.csv").write_text("text,prediction\na,b\n")
    (place / "empty.csv").write_text("text\n")
    with pytest.raises(SystemExit, match=sentence) as end:
        call(place, main, "run=run", *words)
    assert len(str(end.value).splitlines()) == 1
    assert not (place / "o.csv").exists() and not list(place.glob("*.unfinished"))
