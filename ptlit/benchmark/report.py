"""What a benchmark says: a table in the terminal, benchmark.json and a plot in the run folder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from ptlit.benchmark.figures import Figures, Measurement, figures, ratios
from ptlit.benchmark.machine import device_name
from ptlit.benchmark.rows import AboutLM
from ptlit.whole_file import replaced, write_json

JSON, PLOT = "benchmark.json", "benchmark.png"
WIDTH = 100  # of the table, where nobody says how wide the terminal is


class Report:
    """To be entered: what was measured is told at the end, also where engines came to disagree later."""

    def __init__(self, lm: AboutLM, device: str, threads: int, folder: Path):
        self.folder = folder
        self.console = Console(soft_wrap=True, highlight=False)
        self.console.width = max(self.console.width, WIDTH)
        self.where: Figures = {"dtype": lm.dtype, "device": device, "model": lm.name}
        self.machine = {
            "name": device_name(device),
            "threads": threads,
            "torch": torch.__version__,
            "parameters": lm.parameters,
        }
        self.measured: list[Measurement] = []
        self.console.print(
            f"{lm.name}, {lm.parameters:,} parameters in {lm.dtype}, "
            f"on {self.machine['name']} with {threads} CPU threads"
        )

    def say(self, sentence: str) -> None:
        self.console.print(sentence)

    def add(self, measured: Sequence[Measurement]) -> None:
        self.measured += measured
        write_json(self.folder / JSON, self.contents())  # kept, whatever comes

    def contents(self) -> Figures:
        rates = [rate for each in self.measured for rate in each.rates]
        return {
            "rows": [figures(each, self.where) for each in self.measured],
            "ratios": ratios(self.measured, self.where),
            "machine": self.machine,
            "matrix_products": [asdict(rate) for rate in dict.fromkeys(rates)],
        }

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        if self.measured:
            self.tell()

    def tell(self) -> None:
        contents = self.contents()
        for section in sections(contents["rows"]):
            self.console.print(table(section, contents["ratios"]))
        figure = drawn(contents["rows"], f"{self.where['model']}, {self.machine['name']}")
        with replaced(self.folder / PLOT) as part:
            figure.savefig(part, dpi=110)
        self.console.print(f"figures {self.folder / JSON}\nplot    {self.folder / PLOT}")


def table(section: Sequence[Figures], compared: Sequence[Figures]) -> Table:
    """Of one prompt and batch size."""
    found = Table(Column(no_wrap=True, min_width=22), box=SIMPLE, title=section_name(section[0]))
    found.title_justify = "left"
    headings = ("examples per\nCPU second", "per\nsecond", "peak\nMB", "first\nstep, s", "of\nlimit")
    for heading in (*headings, "over\nptlit", "over ptlit\nbucketed"):
        found.add_column(heading, justify="right", no_wrap=True)
    for row in section:
        low, high = row["examples_per_cpu_second_range"]
        limit = row["fraction_of_limit"]
        found.add_row(
            f"{row['engine']}{', bucketed' * (row['batching'] == 'bucketed')}",
            f"{row['examples_per_cpu_second']:.3g} ±{(high - low) / 2 / row['examples_per_cpu_second']:.0%}",
            f"{row['examples_per_second']:.3g}",
            f"{row['peak_mb']:,.0f}",
            f"{row['seconds_to_first_step']:.1f}",
            f"{limit:.0%}" if limit is not None else "",
            *(times_over(row, batching, compared) for batching in ("random", "bucketed")),
        )
    return found


def sections(rows: Sequence[Figures]) -> list[list[Figures]]:
    keys = ("task", "method", "num_virtual_tokens", "batch_size")
    found: dict[tuple[Any, ...], list[Figures]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(found.values())


def section_name(row: Figures) -> str:
    prompt = f"{row['method']}, P={row['num_virtual_tokens']}" if row["method"] else "for context"
    return f"{row['task']}: {prompt}, batch {row['batch_size']}"


def times_over(peer: Figures, batching: str, compared: Sequence[Figures]) -> str:
    """The peer's CPU time (on a GPU its time) over that of ptlit with this batching, for the same rows."""
    time = "cpu_time" if peer["device"] == "cpu" else "time"
    same = ["task", "batch_size"]
    same += ["method", "num_virtual_tokens"] if peer["method"] else []
    found = [
        ratio[time]
        for ratio in compared
        if ratio["over"] == peer["engine"]
        and (ratio["batching"], ratio["batching_of_peer"]) == (batching, peer["batching"])
        and all(ratio[key] == peer[key] for key in same)
    ]
    return f"{found[0]:.2f}x" if len(found) == 1 else ""


def drawn(rows: Sequence[Figures], title: str) -> Figure:
    """Speed, with the range of the passes, and memory of every row of the table."""
    rows = [row for section in sections(rows) for row in section]
    speed = "examples_per_cpu_second" if rows[0]["device"] == "cpu" else "examples_per_second"
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [
        f"{section_name(row)}: {row['engine']}{', bucketed' * (row['batching'] == 'bucketed')}"
        for row in rows
    ]
    places = [-index for index in range(len(rows))]
    colors = ["tab:orange" if row["engine"] == "ptlit" else "tab:blue" for row in rows]
    spread = [
        [abs(row[speed] - end) for row in rows for end in [row[f"{speed}_range"][side]]] for side in (0, 1)
    ]
    left.barh(places, [row[speed] for row in rows], xerr=spread, color=colors)
    left.set(title=speed.replace("_", " "), yticks=places, yticklabels=names)
    right.barh(places, [row["peak_mb"] for row in rows], color=colors)
    right.barh(places, [row["loaded_mb"] for row in rows], color="white", alpha=0.5)
    right.set(title="peak MB (pale: once loaded)")
    figure.suptitle(title)
    return figure
