"""Look at what a prompt has become: python -m ptlit.inspect run=<run folder>"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ptlit.build import call, make
from ptlit.command import command
from ptlit.data.example import NOT_LEARNED, Example, Segment, encode
from ptlit.data.outputs import check_writable
from ptlit.findings import (
    Start,
    attention_received,
    lengths,
    lengths_in_texts,
    nearest_words,
    start_of,
    usual_length,
)
from ptlit.mistake import UserMistake
from ptlit.prompt import EmbeddingPrompt
from ptlit.quiet import quiet
from ptlit.run import Run, open_run
from ptlit.summary import from_here
from ptlit.whole_file import replaced


@dataclass(frozen=True)
class Findings:
    """A table, and what a picture shows."""

    headings: tuple[str, ...]
    lines: list[tuple[str, ...]]
    notes: tuple[str, ...]
    attention: Tensor  # (L, P)
    measures: dict[str, list[float]]  # of each line
    along: str  # what the lines are


def inspect(
    run: str,
    text: str | None = None,
    rows: int = 8,
    words: int = 3,
    checkpoint: Literal["best", "last"] = "best",
    lm: str | None = None,
    trust_code: bool = False,
) -> Findings:
    quiet()
    for key, value in (("rows", rows), ("words", words)):
        if value < 1:
            raise UserMistake(f"{key}={value} must be at least 1.")
    opened = open_run(run, checkpoint, lm, trust_code)
    name = "inspect" if checkpoint == "best" else f"inspect-{checkpoint}"
    picture, table = (opened.folder.root / f"{name}{suffix}" for suffix in (".png", ".csv"))
    check_writable(picture)
    texts = [encoded(opened, text)] if text is not None else test_rows(opened, rows)
    start, attention = start_of(opened), attention_received(opened.prompted_lm, texts)
    if isinstance(opened.prompted_lm.prompt, EmbeddingPrompt):
        found = of_embeddings(opened, start, attention, words)
    else:
        found = of_key_values(opened, start, attention, texts)
    draw(found, picture, str(from_here(opened.folder.root.absolute())))
    write_table(found, table)
    print_findings(found, f"{len(texts)} rows of the test split" if text is None else "the text given")
    print(f"picture {from_here(picture.absolute())}\ntable   {from_here(table.absolute())}")
    return found


def encoded(run: Run, text: str) -> Tensor:
    if not text.strip():
        raise UserMistake("text is empty: give the words to look from.")
    example = (
        run.template.example(text) if run.template is not None else Example((Segment(text, gives_way=True),))
    )
    return torch.tensor(encode(example, run.lm.tokenizer, run.max_length)["input_ids"], device=run.lm.device)


def test_rows(run: Run, count: int) -> list[Tensor]:
    """So many of them, from the first to the last; without what is learned."""
    try:
        data: Any = make(run.cfg.data, tokenizer=run.lm.tokenizer, seed=run.cfg.seed)
        data.setup()
    except UserMistake as mistake:
        raise UserMistake(f"{mistake} Or give a text of your own: text=...") from mistake
    every = data.encoded["test"]
    chosen = every[:: max(1, len(every) // count)][:count]
    texts = [
        [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == NOT_LEARNED]
        for row in chosen
    ]
    return [torch.tensor(ids, device=run.lm.device) for ids in texts]


@torch.no_grad()
def of_embeddings(run: Run, start: Start, attention: Tensor, words: int) -> Findings:
    """A line for each virtual token."""
    assert run.prompted_lm.prompt is not None
    learned = run.prompted_lm.prompt().float()  # (P, H)
    near = nearest_words(run.lm, learned, words)
    measures = {"length": (learned.norm(dim=-1) / usual_length(run.lm)).tolist()}
    if start.learned is not None:
        moved = (learned - start.learned).norm(dim=-1) / start.learned.norm(dim=-1)
        measures = {"moved": moved.tolist(), **measures}
    measures["attention"] = attention.mean(0).tolist()
    headings = ("token", *(("started as",) if start.words else ()), "nearest words", *measures)
    lines = []
    for i, neighbours in enumerate(near):
        said = ", ".join(f"{word} {cosine:.2f}" for word, cosine in neighbours)
        began = (start.words[i],) if start.words else ()
        lines.append((str(i + 1), *began, said, *(shown(name, measures[name][i]) for name in measures)))
    notes = (
        start.note,
        "nearest words: with the cosine; moved: from the start, in its lengths; length: 1 is a word's; "
        "attention: what a token of the text pays it, of its whole attention.",
    )
    return Findings(headings, lines, notes, attention, measures, "virtual token")


@torch.no_grad()
def of_key_values(run: Run, start: Start, attention: Tensor, texts: Sequence[Tensor]) -> Findings:
    """A line for each layer: keys and values are near no word."""
    assert run.prompted_lm.prompt is not None
    learned = run.prompted_lm.prompt().float()  # (L, 2, P, K, D)
    relative = lengths(learned) / lengths_in_texts(run.lm, texts)  # (L, 2)
    measures: dict[str, list[float]] = {}
    if start.learned is not None:
        moved = (learned - start.learned).flatten(2).norm(dim=-1) / start.learned.flatten(2).norm(dim=-1)
        measures |= {"keys moved": moved[:, 0].tolist(), "values moved": moved[:, 1].tolist()}
    measures |= {"key length": relative[:, 0].tolist(), "value length": relative[:, 1].tolist()}
    measures["attention"] = attention.sum(1).tolist()
    lines = [
        (str(layer + 1), *(shown(name, each[layer]) for name, each in measures.items()))
        for layer in range(len(learned))
    ]
    notes = (
        start.note,
        "moved: from the start, as a share of its length; length: 1 is that of the words of a text; "
        "attention: to all virtual tokens together.",
    )
    return Findings(("layer", *measures), lines, notes, attention, measures, "layer")


def shown(name: str, value: float) -> str:
    return f"{value:.1%}" if name == "attention" else f"{value:.2f}"


def draw(found: Findings, picture: Path, title: str) -> None:
    layers, tokens = found.attention.shape
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    image = left.imshow(100 * found.attention.numpy(), aspect="auto", origin="lower", cmap="viridis")
    image.set_extent((0.5, tokens + 0.5, 0.5, layers + 0.5))
    left.set(title="attention it receives from the text, %", xlabel="virtual token", ylabel="layer")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=left)
    for name, values in found.measures.items():
        if name != "attention":
            right.plot(range(1, len(values) + 1), values, "o-", markersize=4, label=name)
    right.set(title="length (1: a word's) and way from the start", xlabel=found.along, ylim=(0, None))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend()
    figure.suptitle(title)
    with replaced(picture) as part:
        figure.savefig(part, dpi=110)


def write_table(found: Findings, path: Path) -> None:
    with replaced(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([found.headings, *found.lines])


def print_findings(found: Findings, seen_from: str) -> None:
    table = Table(*found.headings)
    for line in found.lines:
        table.add_row(*line)
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width, soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    total = float(found.attention.sum(1).mean())
    console.print(
        f"The text pays {total:.1%} of its attention to the prompt (all layers and heads, {seen_from})."
    )
    for note in found.notes:
        console.print(note)


main = command("inspect", call)

if __name__ == "__main__":
    main()
