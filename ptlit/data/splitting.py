"""Rows set aside and rows left out: both stratified, both the same for the same seed."""

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
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
    copies = defaultdict(list)
    for row in rows:
        copies[same_text(text(row))].append(row)
    by_stratum = defaultdict(list)
    for key, same in copies.items():
        by_stratum[Counter(map(stratum, same)).most_common(1)[0][0]].append(key)
    split_of: dict[str, str] = {}
    for keys in by_stratum.values():
        keys.sort(key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
        count = max(1, round(len(keys) * HELD_OUT)) if len(keys) > len(wanted) else 0
        for i, split in enumerate(wanted):
            split_of |= dict.fromkeys(keys[i * count : (i + 1) * count], split)
    splits: dict[str, list[R]] = {"train": [], **{split: [] for split in wanted}}
    for row in rows:
        splits[split_of.get(same_text(text(row)), "train")].append(row)
    return splits


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
