"""A few hundred short English dialogues, cleaned, deduplicated and split by question.

The source is the English part of the ChatterBot corpus. Half of it is copies, and nearly all of the rest
single questions with their answers, so most dialogues of several turns are synthetic: up to four questions on
one topic, joined. The dialogues that have several turns by themselves are all in train, and so are the
questions that have so many answers ("Tell me a joke") that they would be half of a small split.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import yaml

from ptlit.data.splitting import same_text
from ptlit.data.tweets import SPLITS
from ptlit.wheels import CHATTERBOT_CORPUS, build_once, cache_folder, fetch

ALTERNATIVES = (
    "computers",
    "emotion",
)  # in these a question is followed by answers to choose from, not turns
MOST_PAIRS = 4  # in a joined dialogue
MANY_ANSWERS = 7  # to one question

Turns = tuple[str, ...]  # question, answer, question, answer ...


class Message(TypedDict):
    role: str
    content: str
    weight: NotRequired[Literal[0]]  # of a reply that is read, not learned


class BundledDialogue(TypedDict):
    messages: list[Message]
    topic: str
    synthetic: bool  # joined from questions that were asked apart


def dialogues(split: str) -> list[BundledDialogue]:
    with (dialogues_folder() / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def dialogues_folder() -> Path:
    wheel = CHATTERBOT_CORPUS
    return build_once(cache_folder() / "data" / f"dialogues-1-{wheel.name}-{wheel.version}", _build)


def _build(folder: Path) -> None:
    corpus = fetch(CHATTERBOT_CORPUS)
    print("Cleaning and splitting 2,026 dialogues ...", file=sys.stderr, flush=True)
    found = {file.stem: _distinct(_turns(file)) for file in sorted(corpus.glob("*.yml"))}
    every = [turns for dialogues in found.values() for turns in dialogues]
    answers = Counter(same_text(turns[0]) for turns in every)
    for_train = {question for question, count in answers.items() if count >= MANY_ANSWERS}
    for_train |= {same_text(question) for turns in every if len(turns) > 2 for question in turns[::2]}
    splits: dict[str, list[BundledDialogue]] = {split: [] for split in SPLITS}
    for topic, dialogues in found.items():
        pairs: dict[str, list[Turns]] = defaultdict(list)
        for turns in dialogues:
            if len(turns) > 2:
                splits["train"].append(_row(turns, topic, synthetic=False))
            else:
                key = same_text(turns[0])
                pairs["train" if key in for_train else _split_of(key)].append(turns)
        for split, apart in pairs.items():
            for turns in _joined(apart):
                splits[split].append(_row(turns, topic, synthetic=len(turns) > 2))
    for split, rows in splits.items():
        rows.sort(key=lambda row: _hash(json.dumps(row)))  # not by topic any more
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _turns(file: Path) -> Iterator[Turns]:
    for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
        if not isinstance(entry, list):  # one bare sentence
            continue
        said = [str(each).strip() for each in entry]
        if file.stem in ALTERNATIVES:
            yield from ((said[0], answer) for answer in said[1:])
        else:
            yield tuple(said[: len(said) // 2 * 2])  # a question at the end has no answer


def _distinct(dialogues: Iterator[Turns]) -> list[Turns]:
    kept = {tuple(map(same_text, turns)): turns for turns in dialogues if turns and all(turns)}
    return list(kept.values())


def _joined(pairs: list[Turns]) -> Iterator[Turns]:
    """One to four pairs in a row, in an order and of a length that depend on their words alone."""
    dialogue: Turns = ()
    length = 0
    for pair in sorted(pairs, key=lambda pair: _hash("\n".join(pair))):
        if dialogue and (len(dialogue) >= 2 * length or pair[0] in dialogue):
            yield dialogue
            dialogue = ()
        if not dialogue:
            length = 1 + int(_hash(pair[0]), 16) % MOST_PAIRS
        dialogue += pair
    if dialogue:
        yield dialogue


def _row(turns: Turns, topic: str, synthetic: bool) -> BundledDialogue:
    messages = [
        Message(role="assistant" if i % 2 else "user", content=content) for i, content in enumerate(turns)
    ]
    return BundledDialogue(messages=messages, topic=topic, synthetic=synthetic)


def _split_of(key: str) -> str:
    bucket = int(_hash(key)[:16], 16) % 10
    return "val" if bucket == 8 else "test" if bucket == 9 else "train"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
