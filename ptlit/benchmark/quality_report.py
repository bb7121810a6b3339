"""What the quality benchmark says: a table in the terminal, benchmark.json and a plot in the run folder."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from ptlit.benchmark.case import Nodes
from ptlit.benchmark.learners import LEARNERS, UNTAUGHT
from ptlit.benchmark.learners.plain import SAME_IN_PEFT
from ptlit.benchmark.machine import device_name
from ptlit.benchmark.quality_figures import (
    Figures,
    Trials,
    headline,
    milestones,
    rates_of,
    reached,
    rows_of,
)
from ptlit.benchmark.report import JSON, PLOT
from ptlit.benchmark.trial import Plan
from ptlit.whole_file import replaced, write_json

WIDTH = 160  # of the table, where nobody says how wide the terminal is
STYLES = {"ptlit": "-", "peft": "--", "lora": ":", "full": ":"}
MARKERS = {"ptlit": "o", "peft": "s", "lora": "^", "full": "v"}  # x of those that learn nothing
ACCURACY = {"macro_f1": "accuracy", "perplexity": "token_accuracy"}  # that stands beside what is compared


class QualityReport:
    def __init__(self, nodes: Nodes, plan: Plan, device: str, threads: int):
        self.console = Console(soft_wrap=True, highlight=False)
        self.console.width = max(self.console.width, WIDTH)
        self.where: Figures = {
            "model": Path(str(nodes.model.get("name_or_path"))).name,
            "data": nodes.data["path"],
            **asdict(plan),
            "device": device,
            "machine": {"name": device_name(device), "threads": threads, "torch": torch.__version__},
        }

    def say(self, sentence: str) -> None:
        self.console.print(sentence)

    def contents(self, found: Trials) -> Figures:
        trials = sorted(found, key=lambda trial: list(LEARNERS).index(trial["engine"]))
        rows = rows_of(trials)
        soon = [each for name in milestones(trials) for each in reached(rows, name, SAME_IN_PEFT)]
        return {**self.where, "rows": rows, "rates": rates_of(trials), "reached": soon, "trials": trials}

    def write(self, found: Trials, folder: Path) -> None:
        write_json(folder / JSON, finite(self.contents(found)))

    def close(self, found: Trials, folder: Path) -> None:
        self.write(found, folder)
        contents, name = self.contents(found), headline(found)
        self.console.print(table(contents["rows"], name))
        for tried in contents["rates"]:
            self.console.print(rates_sentence(tried))
        for each in contents["reached"]:
            self.console.print(sentence(each))
        figure = drawn(contents["rows"], name, f"{self.where['model']}, {self.where['data']}")
        with replaced(folder / PLOT) as part:
            figure.savefig(part, dpi=110)
        self.console.print(f"figures {folder / JSON}\nplot    {folder / PLOT}")


def finite(value: Any) -> Any:
    """JSON has no word for the loss of what has diverged but null."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[Figures], name: str) -> Table:
    other = ACCURACY[name]
    found = Table(Column(no_wrap=True, min_width=22), box=SIMPLE)
    headings = (
        "learning\nrate",
        "runs",
        "trainable",
        f"test\n{other}",
        f"test\n{name}",
        "test\nloss",
        f"best val\n{name}",
    )
    for heading in (*headings, "after\nexamples", "train\nloss", "s", "CPU s", "peak\nMB"):
        found.add_column(heading.replace("_", " "), justify="right", no_wrap=True)
    for row in rows:
        found.add_row(
            row_name(row),
            shown(row["lr"], "g"),
            str(row["trials"]),
            shown(row["trainable"] or None, ",.0f"),
            shown(row[other], ".3f"),
            shown(row[name], ".3f") + spread(row[f"{name}_range"]),
            shown(row["loss"], ".3f"),
            shown(row["val_best"], ".3f"),
            shown(row["examples_at_best"], ",.0f") if row["trainable"] else "",
            shown(row["train_loss"], ".3f"),
            shown(row["seconds"], ",.0f"),
            shown(row["cpu_seconds"], ",.0f"),
            shown(row["peak_mb"], ",.0f"),
        )
    return found


def row_name(row: Figures) -> str:
    return f"{row['engine']} {row['method']}" if row["method"] else str(row["engine"])


def shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def spread(ends: list[float]) -> str:
    return f" ±{(ends[1] - ends[0]) / 2:.3f}" if ends[1] > ends[0] else ""


def sentence(each: Figures) -> str:
    target = f"PEFT's best validation {each['measure'].replace('_', ' ')} of {each['target']:.3f}"
    if each["ptlit_examples"] is None:
        return f"{each['method']}: never reaches {target} ({each['peft_examples']:,.0f} examples)."
    return (
        f"{each['method']}: {target} ({each['peft_examples']:,.0f} examples) after "
        f"{each['ptlit_examples']:,.0f} examples."
    )


def rates_sentence(tried: Figures) -> str:
    values = (
        f"{each['lr']:g}: {'diverged' if math.isinf(each['value']) else format(each['value'], '.3f')}"
        for each in tried["rates"]
    )
    where = "in training" if tried["measure"] == "train_loss" else "on validation"
    seeds = ", ".join(str(seed) for seed in tried["seeds"])
    with_seeds = f" (seed{'s'[: len(tried['seeds']) - 1]} {seeds})" if seeds else ""
    named = tried["measure"].removeprefix("train_").replace("_", " ")
    return f"{row_name(tried)}, {named} {where} by learning rate{with_seeds}: {', '.join(values)}."


def drawn(rows: list[Figures], name: str, title: str) -> Figure:
    """Validation against examples and against seconds, those that learn nothing as level lines, and the test
    against peak memory; what learners are compared by above, accuracy below.
    """
    figure = Figure(figsize=(17, 9), layout="constrained")
    methods = list(dict.fromkeys(row["method"] or row["engine"] for row in rows))
    colors = {method: f"C{place % 10}" for place, method in enumerate(methods)}
    grid = figure.subplots(2, 3, sharey="row", sharex="col")
    for (examples, seconds, memory), measure in zip(grid, (name, ACCURACY[name]), strict=True):
        for row in rows:
            color = colors[row["method"] or row["engine"]]
            draw_curve(examples, row, "examples", measure, color)
            draw_curve(seconds, row, "seconds", measure, color)
            if row["peak_mb"]:
                memory.plot(row["peak_mb"], row[measure], MARKERS.get(row["engine"], "x"), color=color)
        words = measure.replace("_", " ")
        examples.set(ylabel=f"validation {words}")
        memory.set(ylabel=f"test {words}")
        if measure == "perplexity":
            examples.set_yscale("log")
    for axes, label in zip(grid[-1], ("examples", "seconds", "peak MB"), strict=True):
        axes.set(xlabel=label)
    first = grid[0, 0]
    if first.get_legend_handles_labels()[1]:
        figure.legend(*first.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle(title)
    return figure


def draw_curve(axes: Axes, row: Figures, key: str, name: str, color: str) -> None:
    points = [point for point in row["curve"] if name in point]
    if not points:
        return
    if row["engine"] in UNTAUGHT:
        axes.axhline(points[0][name], color=color, linewidth=0.8, linestyle="-.", label=row_name(row))
        return
    xs, ys = [point[key] for point in points], [point[name] for point in points]
    form = STYLES[row["engine"]] + MARKERS[row["engine"]]
    axes.plot(xs, ys, form, color=color, markersize=4, label=row_name(row))
