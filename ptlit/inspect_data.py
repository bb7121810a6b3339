"""Look at what a training would read: python -m ptlit.inspect_data data=classification data.path=my.csv"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ptlit.build import make, options_of
from ptlit.callbacks.speed import peak_memory_mb
from ptlit.command import command
from ptlit.config import config_mistakes, find_target
from ptlit.data import ClassificationData, TextData
from ptlit.data.collate import IndexedRow
from ptlit.data.example import NOT_LEARNED
from ptlit.data.sampler import Batches, Places
from ptlit.lm import load_lm, load_tokenizer
from ptlit.mistake import UserMistake
from ptlit.prompt import EmbeddingPrompt
from ptlit.quiet import quiet
from ptlit.summary import settings_of_tweets

BARS = 12  # of the histogram
WIDEST = 50  # characters of a bar
READ, LEARNED, VIRTUAL, CUT = "", "bold green", "bold magenta", "bold red"


def inspect_data(cfg: DictConfig) -> None:
    if mistakes := config_mistakes(cfg, "inspect_data"):
        raise UserMistake("\n".join(mistakes))
    quiet()
    if cfg.split not in ("train", "val", "test"):
        raise UserMistake(f"split={cfg.split} must be train, val or test.")
    if not isinstance(cfg.rows, int) or cfg.rows < 0:
        raise UserMistake(f"rows={cfg.rows} must be a whole number, 0 or more.")
    data: TextData[Any] = make(cfg.data, tokenizer=tokenizer_of(cfg.model), seed=cfg.seed)
    data.setup()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    print_rows(console, data, cfg.split, cfg.rows, *front_of(cfg.prompt, data))
    console.print(splits_table(data))
    for note in data.summary()["notes"]:
        console.print(note)
    for line in settings_of_tweets(data):
        console.print(line)
    if any(data.skipped.values()):
        console.print("data.on_bad_row=error names the bad rows that are skipped here.")
    console.print(f"\nTokens of a row, {cfg.split}:")
    for line in histogram(data.encoded[cfg.split].lengths.tolist()):
        console.print(line)
    console.print(padding_line(data))
    console.print(f"Peak memory of this look: {peak_memory_mb(torch.device('cpu')):,.0f} MB.")


def tokenizer_of(node: DictConfig) -> PreTrainedTokenizerBase:
    """Without the LM's weights, where it is known how to."""
    options = options_of(node)
    if options.pop("_target_") != f"{load_lm.__module__}.{load_lm.__name__}":
        return make(node).tokenizer
    about_files = ("name_or_path", "revision", "trust_remote_code", "gguf_file")
    return load_tokenizer(**{key: options[key] for key in about_files if key in options})


def front_of(prompt: DictConfig, data: TextData[Any]) -> tuple[int, int]:
    """The virtual tokens that stand before every row, and how many of a row's own tokens before them."""
    if data.slots:
        return 0, 0
    method, _ = find_target("prompt", str(prompt.get("_target_")))
    placed = isinstance(method, type) and issubclass(method, EmbeddingPrompt)
    return prompt.get("num_virtual_tokens") or 0, len(data.leading) if placed else 0


def print_rows(
    console: Console, data: TextData[Any], split: str, count: int, in_front: int, leading: int
) -> None:
    for row in chosen(data, split, count):
        label = ""
        if data.label_words is not None:
            label = f", {data.label_words.names[row['label']]}"
        console.rule(f"{split} {row['row'] + 1}: {len(row['input_ids'])} tokens{label}", align="left")
        console.print(as_read(data, split, row, in_front, leading))
    if count:
        marks = Text("\n").append("⟦learned⟧", LEARNED).append("  ").append("‹virtual tokens›", VIRTUAL)
        console.print(marks.append("  ").append("✂ cut\n", CUT))


def chosen(data: TextData[Any], split: str, count: int) -> list[IndexedRow]:
    """The first rows; the last of them makes room for one that was cut, if there is no other among them."""
    rows, cut = data.encoded[split], data.cut[split]
    shown = rows[:count]
    if shown and any(cut) and not any(cut[row["row"]] for row in shown):
        shown = [*shown[:-1], next(row for row in rows if cut[row["row"]])]
    return shown


def as_read(data: TextData[Any], split: str, row: IndexedRow, in_front: int = 0, leading: int = 0) -> Text:
    """All that the LM sees of a row, token by token, so that nothing of it is only thought to be there.

    `in_front` virtual tokens stand behind the `leading` ones of the row.
    """
    text = Text(str(data.tokenizer.decode(row["input_ids"][:leading])), READ)
    text.append(f"‹{in_front} virtual tokens›" if in_front else "", VIRTUAL)
    pairs = zip(row["input_ids"][leading:], row["labels"][leading:], strict=True)
    kinds = groupby(pairs, key=lambda pair: (pair[0] < 0, pair[1] != NOT_LEARNED))
    cut = data.cut[split][row["row"]]
    if cut and not isinstance(data, ClassificationData):
        text.append("✂ oldest turns\n", CUT)
    for (virtual, learned), group in kinds:
        ids = [token for token, _ in group]
        if virtual:
            text.append(f"‹{len(ids)} virtual tokens›", VIRTUAL)
            continue
        said = str(data.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if learned:
            text.append(f"⟦{said}⟧", LEARNED)
        elif cut and isinstance(data, ClassificationData):
            whole = data.rows[split][row["row"]]["text"]
            before, kept, after = around_cut(said, whole)
            text.append(before + kept, READ)
            if kept:
                text.append(f"✂ {len(whole) - len(kept):,} characters", CUT)
            text.append(after, READ)
        else:
            text.append(said, READ)
    return text


def around_cut(said: str, whole: str) -> tuple[str, str, str]:
    """What stands before the text, as much of `whole` as is there, and what follows it."""
    least, most = 0, len(whole)
    while least < most:  # the longest beginning that was kept
        middle = (least + most + 1) // 2
        least, most = (middle, most) if whole[:middle] in said else (least, middle - 1)
    place = said.find(whole[:least]) if least else len(said)
    return said[:place], said[place : place + least], said[place + least :]


def splits_table(data: TextData[Any]) -> Table:
    summary = data.summary()["splits"]
    counted = dict.fromkeys(name for split in summary.values() for name in split["counts"])
    table = Table("", *summary)

    def line(title: str, figures: Iterable[float]) -> None:
        table.add_row(title, *(f"{figure:,.0f}" for figure in figures))

    line("rows", (split["rows"] for split in summary.values()))
    for name in counted:
        line(f"  {name}", (split["counts"].get(name, 0) for split in summary.values()))
    line("skipped", (split["skipped"] for split in summary.values()))
    cut = ((split["truncated"], split["truncated"] / max(split["rows"], 1)) for split in summary.values())
    table.add_row("cut", *(f"{rows:,} ({share:.1%})" for rows, share in cut))
    line("median tokens", (split["median_tokens"] for split in summary.values()))
    line("longest", (data.encoded[name].lengths.max() for name in summary))
    line("text also in train", (split["also_in_train"] for split in summary.values()))
    return table


def histogram(lengths: Sequence[int]) -> Iterator[str]:
    """A line for each of a dozen stretches of equal width."""
    least, step = min(lengths), -(-(max(lengths) + 1 - min(lengths)) // BARS)
    counts = [0] * (-(-(max(lengths) + 1 - least) // step))
    for length in lengths:
        counts[(length - least) // step] += 1
    for place, count in enumerate(counts):
        low, high = least + place * step, least + (place + 1) * step - 1
        reach = f"{low}" if step == 1 else f"{low}-{high}"
        bar = "█" * max(round(WIDEST * count / max(counts)), bool(count))
        yield f"{reach:>11} {bar} {count:,}"


def padding_line(data: TextData[Any]) -> str:
    """Of the training batches of an epoch: those of this config, and those of the other way."""
    lengths, classes = data.encoded["train"].lengths, data.encoded["train"].label

    def padded(here: Places) -> float:
        return 1 - int(here.sum()) / (int(here.max()) * len(here))

    def share(**how: Any) -> float:
        batches = Batches(
            lengths, data.batch_size, classes=classes, stratified=data.stratified, seed=data.seed, **how
        )
        return fmean(padded(lengths[batch]) for batch in batches)

    by_length, by_chance = share(max_tokens=data.max_tokens), share(by_length=False)
    rows = f"{data.max_tokens:,} tokens" if data.max_tokens else f"{data.batch_size} rows"
    return (
        f"\nPadding, in the mean over training batches: {by_length:.1%} in batches of {rows} of like length,"
        f" {by_chance:.1%} in batches of {data.batch_size} rows by chance (data.by_length=false)."
    )


main = command("inspect_data", inspect_data)

if __name__ == "__main__":
    main()
