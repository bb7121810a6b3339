"""Rows set aside and rows left out: both stratified by label, both the same for the same seed."""

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from ptlit.data.rows import SourceRow

HELD_OUT = 0.1  # of each label, for val and for test


def same_text(text: str) -> str:
    """Equal for copies of one text that differ in case, spacing or punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def split_by_content(
    rows: Sequence[SourceRow], wanted: Sequence[str], seed: int
) -> dict[str, list[SourceRow]]:
    """Train and the `wanted` of val and test; copies of one text land in one split."""
    copies = defaultdict(list)
    for row in rows:
        copies[same_text(row["text"])].append(row)
    by_label = defaultdict(list)
    for key, same in copies.items():
        by_label[Counter(row["label"] for row in same).most_common(1)[0][0]].append(key)
    split_of: dict[str, str] = {}
    for keys in by_label.values():
        keys.sort(key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
        count = max(1, round(len(keys) * HELD_OUT)) if len(keys) > len(wanted) else 0
        for i, split in enumerate(wanted):
            split_of |= dict.fromkeys(keys[i * count : (i + 1) * count], split)
    splits: dict[str, list[SourceRow]] = {"train": [], **{split: [] for split in wanted}}
    for row in rows:
        splits[split_of.get(same_text(row["text"]), "train")].append(row)
    return splits


def limited(rows: list[SourceRow], limit: int | None, seed: int) -> list[SourceRow]:
    """About the same share of every label, and at least one row of each where the limit allows it."""
    if limit is None or limit >= len(rows):
        return rows
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    by_label = defaultdict(list)
    for place in order:
        by_label[rows[place]["label"]].append(place)
    # Each row's rank within its label, as a share: the smallest shares are a stratified sample of any size.
    shares = [
        (rank > 0, (rank + 0.5) / len(places), label, place)
        for label, places in by_label.items()
        for rank, place in enumerate(places)
    ]
    chosen = sorted(place for _, _, _, place in sorted(shares)[:limit])
    return [rows[place] for place in chosen]
