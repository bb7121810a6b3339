"""Rows set aside and rows left out: both stratified, both the same for the same seed."""

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

R = TypeVar("R")
HELD_OUT = 0.1  # of each stratum (a label), for val and for test


def same_text(text: str) -> str:
    """Equal for copies of one text that differ in case, spacing or punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def split_by_content(
    rows: Sequence[R],
    wanted: Sequence[str],
    seed: int,
    text: Callable[[R], str],
    stratum: Callable[[R], str],
) -> dict[str, list[R]]:
    """Train and the `wanted` of val and test; copies of one text land in one split."""
    split_of: dict[str, str] = {}
    for keys in _by_stratum(rows, seed, text, stratum):
        count = max(1, round(len(keys) * HELD_OUT)) if len(keys) > len(wanted) else 0
        for i, split in enumerate(wanted):
            split_of |= dict.fromkeys(keys[i * count : (i + 1) * count], split)
    splits: dict[str, list[R]] = {"train": [], **{split: [] for split in wanted}}
    for row in rows:
        splits[split_of.get(same_text(text(row)), "train")].append(row)
    return splits


def fold_by_content(
    rows: Sequence[R],
    folds: int,
    fold: int,
    seed: int,
    text: Callable[[R], str],
    stratum: Callable[[R], str],
) -> tuple[list[R], list[R]]:
    """The other folds' rows, and those of one of `folds` equal parts; copies of one text share a fold."""
    keys = [key for some in _by_stratum(rows, seed, text, stratum) for key in some]
    chosen = set(keys[fold::folds])  # dealt out like cards, stratum after stratum
    others: list[R] = []
    here: list[R] = []
    for row in rows:
        (here if same_text(text(row)) in chosen else others).append(row)
    return others, here


def _by_stratum(
    rows: Sequence[R], seed: int, text: Callable[[R], str], stratum: Callable[[R], str]
) -> Iterator[list[str]]:
    """The distinct texts of each stratum, in an order that the seed and the texts alone decide."""
    copies = defaultdict(list)
    for row in rows:
        copies[same_text(text(row))].append(stratum(row))
    by_stratum = defaultdict(list)
    for key, same in copies.items():
        by_stratum[Counter(same).most_common(1)[0][0]].append(key)
    for keys in by_stratum.values():
        keys.sort(key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
        yield keys


def few_of_each(rows: list[R], count: int, seed: int, stratum: Callable[[R], str]) -> list[R]:
    """So many of every stratum, or all that it has."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    taken: Counter[str] = Counter()
    chosen = []
    for place in order:
        taken[stratum(rows[place])] += 1
        if taken[stratum(rows[place])] <= count:
            chosen.append(place)
    return [rows[place] for place in sorted(chosen)]


def limited(rows: list[R], limit: int | None, seed: int, stratum: Callable[[R], str]) -> list[R]:
    """About the same share of every stratum, and at least one row of each where the limit allows it."""
    if limit is None or limit >= len(rows):
        return rows
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    by_stratum = defaultdict(list)
    for place in order:
        by_stratum[stratum(rows[place])].append(place)
    # Each row's rank within its stratum, as a share: the smallest shares are a stratified sample of any size.
    shares = [
        (rank > 0, (rank + 0.5) / len(places), name, place)
        for name, places in by_stratum.items()
        for rank, place in enumerate(places)
    ]
    chosen = sorted(place for _, _, _, place in sorted(shares)[:limit])
    return [rows[place] for place in chosen]
