"""What a person wants to see of a test: metrics, confusion matrix, and the rows with the answers given.

Training leaves it for the test split, evaluating for whatever was judged.
"""

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import ConfusionMatrix

from ptlit.data import TextData
from ptlit.module import SoftPromptModule
from ptlit.whole_file import write_json

Metrics = dict[str, float]

WIDEST = 12.0  # inches of a picture, however many labels there are
MOST_WITH_NUMBERS = 30  # labels of a picture whose cells hold numbers; of more it names so many


def write_report(
    folder: Path,
    module: SoftPromptModule,
    data: TextData[Any],
    split: str,
    measured: Mapping[str, float],
    given: Mapping[int, Tensor],
) -> Metrics:
    """`measured` is what Lightning's test of `module` returned, whichever `split` it read; `given` holds the
    probabilities (C,) of each row.
    """
    counts = {"rows": len(data.encoded[split]), "skipped": data.skipped.get(split, 0)}
    counts["truncated"] = sum(data.cut[split])
    found = {
        name.removeprefix("test/"): value for name, value in measured.items() if name.startswith("test/")
    }
    metrics = {f"{split}/{name}": value for name, value in (found | counts).items()}
    with replacing(folder) as part:
        write_json(part / "metrics.json", {key: metrics[key] for key in sorted(metrics)})
        if module.label_words is not None:
            names, rows = module.label_words.names, data.rows[split]
            picture = confusion_figure(module.metrics_of("test").confusion, names)
            picture.savefig(part / "confusion_matrix.png")
            (part / "samples.md").write_text(samples_table(rows, names, given) + "\n", "utf-8")
            write_answers(part / "predictions.csv", rows, names, given)
    return metrics


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which then becomes `folder`: an earlier one stays until then."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_answers(
    path: Path, rows: Sequence[Any], names: Sequence[str], probabilities: Mapping[int, Tensor]
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["text", "label", *answer_columns(names)])
        for index, row in enumerate(rows):
            sure = probabilities[index]
            lines.writerow([row["text"], names[row["label"]], names[int(sure.argmax())], *sure.tolist()])


def answer_columns(names: Sequence[str], of_many: bool = False) -> list[str]:
    """Of a table with answers: the label, and how sure it is of each; the label's own, where the rows do not
    all have the same labels.
    """
    best = ["probability"] if of_many else []
    return ["prediction", *best, *(f"probability_{name}" for name in names)]


def confusion_figure(confusion: ConfusionMatrix, names: Sequence[str]) -> Figure:
    """Of many labels only the colours are left, and the names of some."""
    side, many = min(1.6 * len(names), WIDEST), len(names) > MOST_WITH_NUMBERS
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    confusion.plot(ax=axes, labels=list(names), add_text=not many)
    for number in axes.texts:
        number.set_fontsize(min(15, 360 / len(names)))  # so that those of two cells do not touch
    if many:
        named = range(0, len(names), -(-len(names) // MOST_WITH_NUMBERS))
        axes.set_xticks(named, [names[i] for i in named])
        axes.set_yticks(named, [names[i] for i in named])
    return figure


def samples_table(
    rows: Sequence[Any], names: Sequence[str], given: Mapping[int, Tensor], num_rows: int = 20
) -> str:
    """In Markdown, the surest wrong answers first; `given` holds the probabilities (C,) of each row."""

    def surprise(answer: tuple[int, Tensor]) -> float:
        index, probabilities = answer
        return float(probabilities[rows[index]["label"]])

    by_surprise = sorted(given.items(), key=surprise)
    last = min(num_rows, len(by_surprise)) // 2
    first = min(num_rows, len(by_surprise)) - last
    shown = [*by_surprise[:first], *by_surprise[len(by_surprise) - last :]]
    lines = ["| right | answered | sure | text |", "|---|---|---|---|"]
    for index, probabilities in shown:
        row, answer = rows[index], int(torch.argmax(probabilities))
        text = " ".join(row["text"].split()).replace("|", "/")
        lines.append(f"| {names[row['label']]} | {names[answer]} | {probabilities[answer]:.2f} | {text} |")
    return "\n".join(lines)
