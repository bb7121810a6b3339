"""Answer every text of a file: python -m ptlit.predict run=<run folder> input=in.csv output=out.parquet"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy
import pyarrow
from rich.console import Console
from torch.utils.data import DataLoader

from ptlit.answering import Answering, TextBatches
from ptlit.build import build_judge, call, judging_accelerator
from ptlit.command import command
from ptlit.data.outputs import check_output, write_rows
from ptlit.data.texts import Survey, TextFile
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.quiet import quiet
from ptlit.report import answer_columns
from ptlit.run import Run, open_run
from ptlit.summary import from_here
from ptlit.unfinished import Unfinished, contents


def predict(
    run: str,
    input: str,
    output: str,
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
    opened = open_run(run, checkpoint, lm, trust_code)
    accelerator = judging_accelerator(opened.cfg, device)
    if opened.template is None or opened.label_words is None:
        raise UserMistake(f"run={run} has learned text: it has no labels to answer with.")
    names, data = opened.label_words.names, opened.cfg.data
    file = TextFile(
        source, opened.template, text_column or data.text_column, encoding or data.get("encoding")
    )
    survey = look_at(file, chunk_size, names, on_bad_row or data.on_bad_row)

    began = time.perf_counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    plan = {
        "checkpoint": contents(opened.folder.checkpoints / f"{checkpoint}.ckpt"),
        "config": contents(opened.folder.config),
        "input": contents(source),
        "text_column": file.text_column,
        "encoding": file.encoding,
        "chunk_size": chunk_size,
    }
    counts: Counter[str | None] = Counter()
    with Unfinished(target, plan) as unfinished:
        size = chunk_size, batch_size or data.eval_batch_size
        try:
            answer(opened, file, survey, unfinished, size, accelerator)
        except SystemExit:  # how Lightning ends on Ctrl-C
            print("\nInterrupted. The same command goes on from here.", flush=True)
            raise
        label, *chances = answer_columns(names)
        types = {
            **survey.columns.types(),
            label: pyarrow.string(),
            **dict.fromkeys(chances, pyarrow.float32()),
        }
        write_rows(target, types, answered(file, unfinished, chunk_size, names, counts))
    print_summary(target, survey, counts, names, time.perf_counter() - began)
    return target


def look_at(file: TextFile, chunk_size: int, names: Sequence[str], on_bad_row: str) -> Survey:
    """Whatever is wrong with the file, before hours are spent on it."""
    survey = file.survey(chunk_size)
    if survey.bad and (on_bad_row == "error" or survey.bad == survey.rows):
        remedy = "No row is left" if survey.bad == survey.rows else "Mend them or set on_bad_row=skip"
        raise UserMistake(f"{file.path} has {survey.bad_rows()}. {remedy}.")
    if taken := [name for name in answer_columns(names) if name in survey.columns.types()]:
        raise UserMistake(f"{file.path} has a column {taken[0]!r} already: rename it, or leave it out.")
    return survey


def answer(
    run: Run, file: TextFile, survey: Survey, unfinished: Unfinished, size: tuple[int, int], accelerator: str
) -> None:
    """All chunks that are not answered yet."""
    assert run.label_words is not None
    chunk_size, batch_size = size
    words = run.label_words
    batches = TextBatches(file, unfinished, run.lm.tokenizer, words, run.max_length, chunk_size, batch_size)
    keeper = Answering(survey, unfinished, chunk_size, len(words.names))
    judge = build_judge(accelerator, run.cfg.trainer.get("precision", "32-true"), [keeper])
    judge.predict(
        SoftPromptModule(run.prompted_lm, label_words=words),
        dataloaders=DataLoader(batches, batch_size=None),
        return_predictions=False,
    )


def answered(
    file: TextFile, unfinished: Unfinished, chunk_size: int, names: Sequence[str], counts: Counter[str | None]
) -> Iterator[dict[str, object]]:
    """Every record with its answer, in order; a bad one with an empty answer. `counts` fills up meanwhile."""
    columns = answer_columns(names)
    for index, (_, record, _) in enumerate(file.rows()):
        if index % chunk_size == 0:
            answers = unfinished.get(index // chunk_size)
        sure = answers[index % chunk_size]
        label = None if numpy.isnan(sure[0]) else names[int(sure.argmax())]
        counts[label] += 1
        chances = [None if label is None else float(str(each)) for each in sure]  # 0.9, not 0.8999999762
        kept = {} if isinstance(record, str) else record
        yield {**kept, **dict(zip(columns, [label, *chances], strict=True))}


def print_summary(
    target: Path, survey: Survey, counts: Counter[str | None], names: Sequence[str], seconds: float
) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    found = ", ".join(f"{name} {counts[name]:,}" for name in names)
    console.print(f"{survey.rows:,} rows in {seconds:.1f} s: {found}")
    if survey.bad:
        console.print(f"without an answer: {survey.bad_rows()}")
    console.print(f"written to {from_here(target.absolute())}")


main = command("predict", call)

if __name__ == "__main__":
    main()
