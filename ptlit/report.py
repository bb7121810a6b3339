"""What a person wants to see of a test: the confusion matrix, and a few rows with the answers given."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import ConfusionMatrix


def answer_columns(names: Sequence[str], of_many: bool = False) -> list[str]:
    """Of a table with answers: the label, and how sure it is of each; the label's own, where the rows do not
    all have the same labels.
    """
    best = ["probability"] if of_many else []
    return ["prediction", *best, *(f"probability_{name}" for name in names)]


def confusion_figure(confusion: ConfusionMatrix, names: Sequence[str]) -> Figure:
    figure = Figure(figsize=(1.6 * len(names) + 1, 1.6 * len(names)), layout="constrained")
    confusion.plot(ax=figure.subplots(), labels=list(names))
    return figure


def samples_table(
    rows: Sequence[Any], names: Sequence[str], given: Mapping[int, Tensor], num_rows: int = 20
) -> str:
    """In Markdown, the surest wrong answers first; `given` holds the probabilities (C,) of each row."""

    def surprise(answer: tuple[int, Tensor]) -> float:
        index, probabilities = answer
        return float(probabilities[rows[index]["label"]])

    by_surprise = sorted(given.items(), key=surprise)
    half = num_rows // 2
    shown = by_surprise if len(by_surprise) <= num_rows else [*by_surprise[:half], *by_surprise[-half:]]
    lines = ["| right | answered | sure | text |", "|---|---|---|---|"]
    for index, probabilities in shown:
        row, answer = rows[index], int(torch.argmax(probabilities))
        text = " ".join(row["text"].split()).replace("|", "/")
        lines.append(f"| {names[row['label']]} | {names[answer]} | {probabilities[answer]:.2f} | {text} |")
    return "\n".join(lines)
