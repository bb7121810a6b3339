"""Splits and limits by two numbers a row, beside the same said with dictionaries of texts."""

import hashlib
import random
from collections import Counter, defaultdict

import numpy
import pytest

from ptlit.data.splitting import (
    Traits,
    few_of_each,
    fold_by_content,
    key_of,
    limited,
    same_text,
    split_by_content,
)

Row = tuple[str, str]  # text and label


def rows_of(count: int, texts: int, weights: tuple[int, ...]) -> list[Row]:
    chance = random.Random(count)
    labels = chance.choices("cab"[: len(weights)], weights, k=count)
    written = (str.upper, str.title, "{}!".format, " {} ".format)
    return [(chance.choice(written)(f"text {chance.randrange(texts)}"), label) for label in labels]


def traits_of(rows: list[Row], seed: int) -> Traits:
    names = list(dict.fromkeys(label for _, label in rows))
    keys = [key_of(text, seed) for text, _ in rows]
    return Traits(
        numpy.array(keys, numpy.uint64), numpy.array([names.index(label) for _, label in rows]), tuple(names)
    )


def texts_by_label(rows: list[Row], seed: int) -> list[list[str]]:
    """Of each label the distinct texts, most of whose copies have it, mixed by the seed."""
    labels = defaultdict(list)
    for text, label in rows:
        labels[same_text(text)].append(label)
    by_label = defaultdict(list)
    for text, same in labels.items():
        by_label[Counter(same).most_common(1)[0][0]].append(text)
    return [
        sorted(texts, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
        for texts in by_label.values()
    ]


MANY = [(3, 9, (1,)), (40, 8, (1, 1)), (200, 500, (1, 1)), (300, 120, (9, 3, 1)), (500, 60, (1, 5, 2))]


@pytest.fixture(params=[(*shape, seed) for shape in MANY for seed in (0, 42)], ids=str)
def given(request: pytest.FixtureRequest) -> tuple[list[Row], int]:
    count, texts, weights, seed = request.param
    return rows_of(count, texts, weights), seed


@pytest.mark.parametrize("wanted", [["val"], ["val", "test"]])
def test_a_tenth_of_each_labels_texts_is_set_aside(given: tuple[list[Row], int], wanted: list[str]) -> None:
    rows, seed = given
    split_of: dict[str, str] = {}
    for texts in texts_by_label(rows, seed):
        count = max(1, round(len(texts) / 10)) if len(texts) > len(wanted) else 0
        for i, split in enumerate(wanted):
            split_of |= dict.fromkeys(texts[i * count : (i + 1) * count], split)
    expected = defaultdict(list)
    for place, (text, _) in enumerate(rows):
        expected[split_of.get(same_text(text), "train")].append(place)
    found = split_by_content(traits_of(rows, seed), wanted)
    assert {split: places.tolist() for split, places in found.items()} == {
        split: expected[split] for split in ("train", *wanted)
    }


@pytest.mark.parametrize(("folds", "fold"), [(2, 0), (5, 3)])
def test_folds_are_dealt_out_like_cards(given: tuple[list[Row], int], folds: int, fold: int) -> None:
    rows, seed = given
    dealt = [text for texts in texts_by_label(rows, seed) for text in texts]
    chosen = set(dealt[fold::folds])
    others, here = fold_by_content(traits_of(rows, seed), folds, fold)
    assert here.tolist() == [i for i, (text, _) in enumerate(rows) if same_text(text) in chosen]
    assert sorted([*others.tolist(), *here.tolist()]) == list(range(len(rows)))


def by_chance(rows: list[Row], seed: int) -> dict[str, list[int]]:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    by_label = defaultdict(list)
    for place in order:
        by_label[rows[place][1]].append(place)
    return by_label


@pytest.mark.parametrize("count", [1, 16, 1000])
def test_few_of_each_are_the_first_by_chance(given: tuple[list[Row], int], count: int) -> None:
    rows, seed = given
    expected = sorted(place for places in by_chance(rows, seed).values() for place in places[:count])
    assert few_of_each(traits_of(rows, seed), count, seed).tolist() == expected


@pytest.mark.parametrize("limit", [None, 1, 2, 17, 150, 1000])
def test_limits_take_the_same_share_of_each_label(given: tuple[list[Row], int], limit: int | None) -> None:
    rows, seed = given
    shares = [
        (rank > 0, (rank + 0.5) / len(places), label, place)
        for label, places in by_chance(rows, seed).items()
        for rank, place in enumerate(places)
    ]
    expected = sorted(place for *_, place in sorted(shares)[:limit])
    assert limited(traits_of(rows, seed), limit, seed).tolist() == expected


def test_strata_that_no_row_has_do_not_count() -> None:
    rows = traits_of([("a", "x"), ("b", "y"), ("c", "y"), ("d", "y")], 0).at(numpy.array([1, 2, 3]))
    assert rows.counts() == {"y": 3}
    assert len(split_by_content(rows, ["val"])["val"]) == 1
    assert limited(rows, 2, 0).size == few_of_each(rows, 2, 0).size == 2
