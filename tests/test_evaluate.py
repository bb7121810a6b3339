"""Judging runs that are there: the numbers of the training, on any split or file."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import call, train_at
from safetensors.torch import load_file
from tiny import byte_tokenizer

from ptlit.data import ClassificationData
from ptlit.evaluate import main
from ptlit.predict import main as predict
from ptlit.prompted_lm import PromptedLM


def read(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())


def rows_of(place: Path, split: str) -> list[dict]:
    data = ClassificationData(tokenizer=byte_tokenizer(), path=str(place / "tweets.csv"), template="{text}")
    data.setup()
    return data.rows[split]


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("run", ["trained", "trained_deep"])
def test_the_numbers_are_those_of_the_training(
    place: Path, run: str, split: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(run)
    call(place, main, f"run={folder.name}", f"split={split}")
    trained, judged = read(folder / "metrics.json"), read(folder / "evaluation" / split / "metrics.json")
    names = {name for name in trained if name.startswith(f"{split}/")}
    assert len(names) == 6
    assert {name: judged[name] for name in names} == {name: trained[name] for name in names}
    if split == "test":  # training leaves the very report
        for file in ("metrics.json", "predictions.csv", "samples.md", "confusion_matrix.png"):
            left, made = folder / "report" / file, folder / "evaluation" / "test" / file
            assert left.read_bytes() == made.read_bytes(), file


def test_the_prompt_is_computed_once_for_all_batches(
    place: Path, trained_deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, computed = PromptedLM.prefix, []

    def counted(self: PromptedLM) -> object:
        computed.append(self)
        return prefix(self)

    monkeypatch.setattr(PromptedLM, "prefix", counted)
    given = [f"run={trained_deep.name}", "batch_size=1"]
    call(place, main, *given)
    assert len(rows_of(place, "test")) > 1 and len(computed) == 1
    call(place, predict, *given, "input=tweets.csv", "output=answers.csv")
    assert len(computed) == 2


def test_a_split_that_was_left_alone_is_judged_later(place: Path, capsys: pytest.CaptureFixture) -> None:
    """The same prompt and the same figures as those of a run that was tested at once."""
    words = ["experiment=prefix_tuning", "trainer.val_check_interval=3"]
    tested = train_at(place, "tested", *words)
    capsys.readouterr()
    folder = train_at(place, "untested", *words, "test=false")
    said = capsys.readouterr().out
    assert "on the validation split" in said and "on the test split" not in said
    left, whole = read(folder / "metrics.json"), read(tested / "metrics.json")
    assert not [name for name in left if name.startswith(("test/", "baseline/"))]
    assert not (folder / "report").exists()
    same = [name for name in whole if name.startswith(("val/", "parameters/"))]
    assert same and all(left[name] == whole[name] for name in same)
    steps = [torch.load(folder / "checkpoints" / f"{name}.ckpt")["global_step"] for name in ("best", "last")]
    assert steps[0] < steps[1]
    adapters = [load_file(each / "adapter" / "adapter_model.safetensors") for each in (folder, tested)]
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
    call(place, main, "run=untested")
    judged = read(folder / "evaluation" / "test" / "metrics.json")
    assert judged["test/loss"] == pytest.approx(whole["test/loss"], abs=1e-6)
    assert judged["test/macro_f1"] == whole["test/macro_f1"]


def test_a_file_with_columns_of_its_own(place: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    """The test rows once more, among rows that are of no use."""
    with (place / "own.tsv").open("w", newline="") as file:
        lines = csv.writer(file, delimiter="\t")
        lines.writerow(["stars", "body"])
        lines.writerows([("bad", "good")[row["label"]], row["text"]] for row in rows_of(place, "test"))
        lines.writerows([("bad", " "), ("other", "a text")])
    words = ["run=run", "input=own.tsv", "text_column=body", "label_column=stars"]
    with pytest.raises(
        SystemExit, match="2 bad rows: line 14: empty text; line 15: the label 'other' is none of"
    ):
        call(place, main, *words)
    assert not (trained / "evaluation" / "own.tsv").exists()
    call(place, main, *words, "on_bad_row=skip", "batch_size=5")
    judged = read(trained / "evaluation" / "own.tsv" / "metrics.json")
    known = read(trained / "metrics.json")
    for name in ("test/accuracy", "test/macro_f1", "test/f1_good", "test/loss"):
        assert judged[name] == pytest.approx(known[name], abs=1e-5)
    assert (judged["test/rows"], judged["test/skipped"]) == (12, 2)
    assert "report run/evaluation/own.tsv (2 bad rows left out)" in capsys.readouterr().out


def test_nothing_is_judged_for_a_folder_that_cannot_be_written(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(trained, place / "blocked", ignore=shutil.ignore_patterns("evaluation")))
    (folder / "evaluation").write_text("a file in its place")
    monkeypatch.setattr("ptlit.evaluate.open_run", lambda *_, **__: pytest.fail("an LM was loaded"))
    with pytest.raises(
        SystemExit, match="metrics.json cannot be written: .*/blocked/evaluation is no folder"
    ):
        call(place, main, "run=blocked")
    (folder / "evaluation").unlink()
    monkeypatch.setattr("os.access", lambda *_, **__: False)  # root may write everywhere
    with pytest.raises(SystemExit, match="metrics.json cannot be written: .*/blocked is write-protected"):
        call(place, main, "run=blocked")


def test_the_report_holds_every_row(place: Path, trained: Path) -> None:
    call(place, main, "run=run", "split=train", "checkpoint=last")
    folder = trained / "evaluation" / "train-last"
    with (folder / "predictions.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert [row["text"] for row in answers] == [row["text"] for row in rows_of(place, "train")]
    right = sum(row["label"] == row["prediction"] for row in answers)
    assert read(folder / "metrics.json")["train/accuracy"] == pytest.approx(right / len(answers))
    for row in answers:
        chances = {name: float(row[f"probability_{name}"]) for name in ("bad", "good")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(chances, key=chances.__getitem__)
    error, count = 0.0, len(answers)
    for low in range(15):  # as the papers have it: 15 bins of what the answers were given for
        sure = {
            i: max(float(row["probability_bad"]), float(row["probability_good"]))
            for i, row in enumerate(answers)
        }
        here = [i for i, chance in sure.items() if low / 15 < chance <= (low + 1) / 15]
        if here:
            correct = sum(answers[i]["label"] == answers[i]["prediction"] for i in here) / len(here)
            error += len(here) / count * abs(correct - sum(sure[i] for i in here) / len(here))
    assert read(folder / "metrics.json")["train/ece"] == pytest.approx(error, abs=1e-5)
    assert (folder / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert "| right | answered |" in (folder / "samples.md").read_text()


@pytest.mark.parametrize(
    "words", ["run=runs/*", "run=runs/first,runs/lr=1,n=2", "run=[runs/first,'runs/lr=1,n=2']"]
)
def test_several_runs_end_in_one_table(
    trained: Path, trained_deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture, words: str
) -> None:
    other = (
        "other" if words == "run=runs/first,runs/lr=1,n=2" else "lr=1,n=2"
    )  # a comma parts names, but for that of a folder
    shutil.copytree(trained, tmp_path / "runs" / "first")
    shutil.copytree(trained_deep, tmp_path / "runs" / other)
    call(tmp_path, main, words.replace("first,runs/lr=1,n=2", "first,runs/other"))
    said = capsys.readouterr().out
    with (tmp_path / "runs" / "evaluation_test.csv").open(newline="") as file:
        table = {row["run"]: float(row["test/loss"]) for row in csv.DictReader(file)}
    assert table.keys() == {"runs/first", f"runs/{other}"}
    for name, loss in table.items():
        assert loss == read(tmp_path / name / "metrics.json")["test/loss"]
        assert name in said
    call(tmp_path, main, f"run=runs/{other}")


def test_the_keys_that_a_mistake_names_are_taken(place: Path, trained: Path) -> None:
    (place / "latin.csv").write_bytes("text,label\nschön,good\nwell,good\n".encode("latin-1"))
    words = ["run=run", "input=latin.csv"]
    for more, remedy in (
        (["label_column=lbl"], "; set label_column."),
        (["text_column=txt"], "; set text_column."),
        (["encoding=utf-99"], "encoding='utf-99' is no encoding that Python knows."),
        (["encoding=utf-16"], ": set another encoding, such as utf-16-le."),
        ([], "line 2: bytes that do not fit the encoding; set encoding if the file is not utf-8. Mend them "),
        ([], " or set on_bad_row=skip."),
    ):
        with pytest.raises(SystemExit) as end:
            call(place, main, *words, *more)
        assert remedy in str(end.value) and "data." not in str(end.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run=no*"], r"run=no\* matches no run folder"),
        (["run=lm"], "run=lm is no run folder"),
        (["run=."], "of a sweep perhaps: choose one, such as "),
        (["run=run", "split=tset"], "split=tset must be one of test, val, train.*did you mean test"),
        (["run=run", "split=val", "input=tweets.csv"], "two things to judge"),
        (["run=run", "input=gone.csv"], "input=gone.csv: there is no such file"),
        (["run=run", "input=lm/config.txt"], "input=lm/config.txt: there is no such file"),
        (["run=run", "input=tweets.csv", "text_column=txt"], r"has no column 'txt' \(nearest: 'text'\)"),
        (["run=run", "text_column=body"], "text_column is about a file of your own"),
        (["run=run", "device=gpu"], "no GPU is found here"),
        (["run=run", "batch_size=0"], "^batch_size=0 must be at least 1"),
        (["run=run", "spilt=val"], "spilt is not a key of this config: did you mean split"),
        ([], "run has no value: give run="),
        (["-m", "run=run"], "-m is for training"),
    ],
)
def test_mistakes_are_one_sentence(
    place: Path, trained: Path, trained_deep: Path, words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit, match=sentence) as end:
        call(place, main, *words)
    assert len(str(end.value).splitlines()) == 1
