"""The run as one picture: training loss and validation scores over the steps, baselines as dashed lines."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ptlit.whole_file import replaced


def read_curves(files: Sequence[Path]) -> dict[str, list[tuple[int, float]]]:
    """Lightning's CSV has a column a metric and blanks where it was not measured. A later file counts."""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for path in files:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        curves[name][int(row["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def plot_curves(files: Sequence[Path], picture: Path, metrics: dict[str, float], title: str) -> None:
    curves = read_curves(files)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*smoothed(curves.get("train/loss", [])), strict=True), label="train", color="tab:blue")
    if "val/loss" in curves:
        left.plot(*zip(*curves["val/loss"], strict=True), "o-", label="val", color="tab:orange", markersize=4)
    left.set(title="loss of the learned tokens", xlabel="step", yscale="log")
    left.legend()
    shown = [name for name in ("val/macro_f1", "val/accuracy", "val/token_accuracy") if name in curves]
    for name, color in zip(shown, ("tab:orange", "tab:green"), strict=False):
        measure = name.removeprefix("val/")
        right.plot(*zip(*curves[name], strict=True), "o-", label=measure, color=color, markersize=4)
        if f"baseline/hard_prompt/{measure}" in metrics:
            right.axhline(metrics[f"baseline/hard_prompt/{measure}"], ls="--", lw=1, color=color, alpha=0.6)
    compared = any(name.startswith("baseline/") for name in metrics)
    right.set(title="validation" + " (dashed: untrained LM on test)" * compared, xlabel="step")
    right.set(ylim=(0, 1), xlim=left.get_xlim())
    right.legend()
    figure.suptitle(title)
    with replaced(picture) as part:
        figure.savefig(part, dpi=110)


def smoothed(points: list[tuple[int, float]], memory: float = 0.9) -> list[tuple[int, float]]:
    """An exponential mean without its start-up bias: a batch of eight tweets is a noisy witness."""
    mean, weight, smooth = 0.0, 0.0, []
    for step, value in points:
        mean, weight = memory * mean + (1 - memory) * value, memory * weight + 1 - memory
        smooth.append((step, mean / weight))
    return smooth
