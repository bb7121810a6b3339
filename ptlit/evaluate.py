"""Judge trained prompts on any split or file: python -m ptlit.evaluate run=<run folder>"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import TQDMProgressBar
from rich.console import Console
from rich.table import Table

from ptlit.build import build_judge, call, judging_accelerator, make
from ptlit.callbacks.answers import Answers
from ptlit.command import command
from ptlit.data import ClassificationData
from ptlit.data.outputs import check_writable
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.quiet import quiet
from ptlit.reading_keys import mistakes_of_judging
from ptlit.report import Metrics, write_report
from ptlit.run import Run, open_run, read_config
from ptlit.run_folder import RunFolder
from ptlit.summary import from_here
from ptlit.whole_file import replaced

MEASURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "loss": "loss",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
}


@dataclass(frozen=True)
class Evaluation:
    path: Path  # of the run
    run: Run
    metrics: Metrics
    folder: Path  # of what was written


def evaluate(
    run: str | list[str],
    split: Literal["test", "val", "train"] | None = None,
    input: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    encoding: str | None = None,
    on_bad_row: Literal["error", "skip"] | None = None,
    batch_size: int | None = None,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["cpu", "gpu"] | None = None,
    lm: str | None = None,
    trust_code: bool = False,
) -> list[Evaluation]:
    """What is None is as it was in training."""
    quiet()
    file = Path(input).expanduser() if input is not None else None
    if file is not None and split is not None:
        raise UserMistake(f"split={split} and input={input} are two things to judge: give one of them.")
    if file is not None and not file.is_file():
        raise UserMistake(f"input={input}: there is no such file.")
    reading = {
        "text_column": text_column,
        "label_column": label_column,
        "encoding": encoding,
        "on_bad_row": on_bad_row,
        "eval_batch_size": batch_size,
    }
    changes = {key: value for key, value in reading.items() if value is not None}
    about_files = [key for key in changes if key in ("text_column", "label_column", "encoding")]
    if file is None and about_files:
        raise UserMistake(f"{about_files[0]} is about a file of your own: give input=... too.")
    title = file.name if file is not None else split or "test"
    title = title if checkpoint == "best" else f"{title}-{checkpoint}"
    folders = {path: RunFolder(path).evaluation / title for path in run_paths(run)}
    for folder in folders.values():
        check_writable(folder / "metrics.json")
    done = []
    for path, folder in folders.items():
        opened = open_run(path, checkpoint, lm, trust_code, averages=True)
        with mistakes_of_judging():
            data: ClassificationData = read_data(opened, file, changes)
        accelerator = judging_accelerator(opened.cfg, device)
        done.append(Evaluation(path, opened, judge(opened, data, split, accelerator, folder), folder))
    print_table(done)
    return done


def run_paths(run: str | Sequence[str]) -> list[Path]:
    """Patterns filled in, and every folder looked at before the first LM is loaded."""
    paths: list[Path] = []
    for given in [run] if isinstance(run, str) else run:
        whole = Path(given).expanduser()
        found = (
            [whole] if whole.exists() or not set("*?[") & set(given) else sorted(map(Path, glob(str(whole))))
        )
        runs = [path for path in found if RunFolder(path).config.is_file()] if len(found) > 1 else found
        if not runs:
            raise UserMistake(f"run={given} matches no run folder.")
        paths += runs
    for path in paths:
        read_config(RunFolder(path))
    return list(dict.fromkeys(paths))


def read_data(run: Run, file: Path | None, changes: Mapping[str, Any]) -> ClassificationData:
    live = {"tokenizer": run.lm.tokenizer, "seed": run.cfg.seed}
    if file is None:
        data: ClassificationData = make(run.cfg.data, **live, **changes)
        data.setup()
        return data
    if run.label_words is None:
        raise UserMistake(
            f"input={file}: {run.folder.root} has learned text, and a file of one's own needs labels."
        )
    data = make(run.cfg.data, **live, **changes, path=str(file), val_path=None, test_path=None)
    data.setup_file(file)
    return data


def judge(run: Run, data: ClassificationData, split: str | None, accelerator: str, folder: Path) -> Metrics:
    """As training does it, into `folder`."""
    module = SoftPromptModule(run.prompted_lm, label_words=run.label_words, others=run.others)
    answers = Answers()
    judge = build_judge(
        accelerator,
        run.precision,
        [TQDMProgressBar(), answers],
    )
    read = split or "test"
    measured = judge.test(module, dataloaders=data.eval_dataloader(read), verbose=False)[0]
    return write_report(folder, module, data, read, measured, answers.probabilities)


def print_table(done: Sequence[Evaluation]) -> None:
    """On the terminal; of several runs all metrics go into a CSV file too."""
    shown = [name for name in MEASURES if any(name in measures(each) for each in done)]
    table = Table("run", "rows", *(MEASURES[name] for name in shown))
    for each in done:
        found = measures(each)
        figures = [found.get(name) for name in shown]
        cells = ["" if figure is None else f"{figure:.3f}" for figure in figures]
        table.add_row(str(from_here(each.path.absolute())), f"{found['rows']:,.0f}", *cells)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for each in done:
        skipped = measures(each)["skipped"]
        left_out = f" ({skipped:,.0f} bad rows left out)" if skipped else ""
        console.print(f"report {from_here(each.folder.absolute())}{left_out}")
    if len(done) > 1:
        console.print(f"table  {from_here(write_table(done))}")


def measures(evaluation: Evaluation) -> Metrics:
    return {name.partition("/")[2]: value for name, value in evaluation.metrics.items()}


def write_table(done: Sequence[Evaluation]) -> Path:
    """Beside the runs, named by what was judged."""
    names = sorted({name for each in done for name in each.metrics})
    path = Path(os.path.commonpath([each.path.absolute().parent for each in done])) / (
        f"evaluation_{done[0].folder.name}.csv"
    )
    with replaced(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["run", *names])
        lines.writerows([each.path, *(each.metrics.get(name, "") for name in names)] for each in done)
    return path


main = command("evaluate", call)

if __name__ == "__main__":
    main()
