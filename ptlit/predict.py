"""Answer every text of a file: python -m ptlit.predict run=<run folder> input=in.csv output=out.parquet"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import lightning as L
import pyarrow
from rich.console import Console
from torch.utils.data import DataLoader

from ptlit.answering import Answering, AnswersOfMany, TextBatches, without_room
from ptlit.build import build_judge, call
from ptlit.command import command
from ptlit.data import LabelWords
from ptlit.data.outputs import check_output, write_rows
from ptlit.data.texts import Survey, TextFile
from ptlit.many_prompts import ManyPrompts
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.quiet import quiet
from ptlit.reading_keys import as_judging_says, mistakes_of_judging
from ptlit.report import answer_columns
from ptlit.run_folder import named_folders
from ptlit.runs import Runs, accelerator, open_runs, precision, setting
from ptlit.summary import from_here
from ptlit.unfinished import Unfinished, contents


def predict(
    run: str | list[str] | dict[str, str],
    input: str,
    output: str,
    run_column: str | None = None,
    overwrite: bool = False,
    text_column: str | None = None,
    encoding: str | None = None,
    on_bad_row: Literal["error", "skip"] | None = None,
    batch_size: int | None = None,
    chunk_size: int = 512,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["cpu", "gpu"] | None = None,
    lm: str | None = None,
    trust_code: bool = False,
) -> Path:
    """What is None is as it was in training. The file that was written."""
    quiet()
    source, target = Path(input).expanduser(), Path(output).expanduser()
    if not source.is_file():
        raise UserMistake(f"input={input}: there is no such file.")
    check_output(target, overwrite)
    if target.exists() and target.samefile(source):
        raise UserMistake(f"output={output} is the input: give it another name.")
    for key, value in (("batch_size", batch_size), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise UserMistake(f"{key}={value} must be at least 1.")
    folders = named_folders(run)
    if run_column is None and len(folders) > 1:
        raise UserMistake(
            f"run names {len(folders)} runs, and nothing says which of them answers a row: give "
            f"run_column=<a column that holds {' or '.join(folders)}>."
        )
    runs = open_runs(folders, checkpoint, lm, trust_code, averages=run_column is None)
    judge_with = accelerator(runs, device), precision(runs)
    words = {name: each.label_words for name, each in runs.items() if each.label_words is not None}
    module, labels = who_answers(runs, words, run_column)
    columns = answer_columns(labels, of_many=run_column is not None)
    file = TextFile(
        source,
        {name: each.template for name, each in runs.items() if each.template is not None},
        setting(runs, "text_column", text_column),
        setting(runs, "encoding", encoding),
        run_column,
    )
    if run_column == file.text_column:
        raise UserMistake(f"run_column={run_column} is the column with the texts.")
    if_bad = setting(runs, "on_bad_row", on_bad_row)
    with mistakes_of_judging():
        survey = look_at(file, runs, chunk_size, columns, if_bad)

    began = time.perf_counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    plan = {
        "checkpoints": [contents(each.folder.checkpoints / f"{checkpoint}.ckpt") for each in runs.values()],
        "configs": [contents(each.folder.config) for each in runs.values()],
        "names": list(runs) if run_column is not None else None,
        "input": contents(source),
        "run_column": run_column,
        "text_column": file.text_column,
        "encoding": file.encoding,
        "chunk_size": chunk_size,
    }
    counts: Counter[tuple[str, str]] = Counter()
    with Unfinished(target, plan) as unfinished:
        size = batch_size or min(each.cfg.data.eval_batch_size for each in runs.values())
        batches = TextBatches(file, survey, unfinished, runs, chunk_size, size)
        keeper = Answering(survey, unfinished, chunk_size, len(labels))
        judge = build_judge(*judge_with, [keeper])
        try:
            judge.predict(module, DataLoader(batches, batch_size=None), return_predictions=False)
        except SystemExit:  # how Lightning ends on Ctrl-C
            print("\nInterrupted. The same command goes on from here.", flush=True)
            raise
        label, *chances = columns
        types = {
            **survey.columns.types(),
            label: pyarrow.string(),
            **dict.fromkeys(chances, pyarrow.float32()),
        }
        write_rows(target, types, answered(file, survey, unfinished, chunk_size, labels, words, counts))
    print_summary(target, survey, counts, words, time.perf_counter() - began)
    return target


def who_answers(
    runs: Runs, words: Mapping[str, LabelWords], run_column: str | None
) -> tuple[L.LightningModule, tuple[str, ...]]:
    """And the labels there are."""
    if run_column is None:
        ((name, run),) = runs.items()
        alone = SoftPromptModule(run.prompted_lm, label_words=words[name], others=run.others)
        return alone, words[name].names
    many = ManyPrompts({name: run.prompted_lm for name, run in runs.items()}, words)
    return AnswersOfMany(many), many.labels


def look_at(file: TextFile, runs: Runs, chunk_size: int, columns: Sequence[str], on_bad_row: str) -> Survey:
    """Whatever is wrong with the file, before hours are spent on it."""
    survey = file.survey(chunk_size, partial(without_room, file, runs))
    if survey.bad and (on_bad_row == "error" or survey.bad == survey.rows):
        remedy = "No row is left" if survey.bad == survey.rows else "Mend them or set on_bad_row=skip"
        raise UserMistake(f"{file.path} has {survey.bad_rows()}. {remedy}.")
    if taken := [name for name in columns if name in survey.columns.types()]:
        raise UserMistake(f"{file.path} has a column {taken[0]!r} already: rename it, or leave it out.")
    return survey


def answered(
    file: TextFile,
    survey: Survey,
    unfinished: Unfinished,
    chunk_size: int,
    labels: Sequence[str],
    words: Mapping[str, LabelWords],
    counts: Counter[tuple[str, str]],
) -> Iterator[dict[str, object]]:
    """Every record with its answer, in order; a bad one with an empty answer, and nothing for labels that a
    row's run does not have. `counts` fills up meanwhile.
    """
    columns = answer_columns(labels, of_many=file.run_column is not None)
    for index, (_, record, row) in enumerate(file.rows()):
        if index % chunk_size == 0:
            answers = unfinished.get(index // chunk_size)
        kept = {} if isinstance(record, str) else record
        if isinstance(row, str) or index in survey.without_room:
            yield {**kept, **dict.fromkeys(columns)}
            continue
        run, sure = file.run_of(row), answers[index % chunk_size]
        label, known = labels[int(sure.argmax())], words[run].names
        counts[run, label] += 1
        chances = [
            float(str(each)) if name in known else None for name, each in zip(labels, sure, strict=True)
        ]
        best = [] if file.run_column is None else [float(str(sure.max()))]  # 0.9, not 0.8999999762
        yield {**kept, **dict(zip(columns, [label, *best, *chances], strict=True))}


def print_summary(
    target: Path,
    survey: Survey,
    counts: Counter[tuple[str, str]],
    words: Mapping[str, LabelWords],
    seconds: float,
) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    found = {
        name: ", ".join(f"{label} {counts[name, label]:,}" for label in known.names)
        for name, known in words.items()
    }
    said = [each if len(found) == 1 else f"{name}: {each}" for name, each in found.items()]
    console.print(f"{survey.rows:,} rows in {seconds:.1f} s: {'; '.join(said)}")
    if survey.bad:
        console.print(f"without an answer: {as_judging_says(survey.bad_rows())}")
    console.print(f"written to {from_here(target.absolute())}")


main = command("predict", call)

if __name__ == "__main__":
    main()
