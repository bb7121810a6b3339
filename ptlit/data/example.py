"""An Example is text in segments, each read or learned; `encode` turns it into ids.

This is the only place that decides about BOS, EOS, truncation and -100. A stretch of read segments is
tokenised as one string and a stretch of learned ones as another, so inference, which has only the first,
meets the tokens of training. Virtual tokens that a template puts into the row are negative ids: -1 is the
first of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple, TypedDict

from transformers import PreTrainedTokenizerBase

from ptlit.mistake import UserMistake

NOT_LEARNED = -100
NO_LABEL = -1


@dataclass(frozen=True)
class Segment:
    text: str = ""
    learned: bool = False
    gives_way: bool = False  # cut from its end when the row is too long
    virtual: int = 0  # virtual tokens that stand here, instead of text


@dataclass(frozen=True)
class Example:
    segments: tuple[Segment, ...]
    label: int = NO_LABEL
    ends_with_eos: bool = False
    spare: int = 0  # tokens to leave free in a row that is cut: those of the longest label beyond its own
    starts_by_itself: bool = False  # a chat template writes a BOS where one is wanted


class _Stretch(NamedTuple):
    """Neighbouring segments of one kind."""

    text: str
    learned: bool
    virtual: int


class EncodedRow(TypedDict):
    input_ids: list[int]
    labels: list[int]  # NOT_LEARNED where a token is only read
    label: int


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedRow:
    rows, _ = encode_all([example], tokenizer, max_length)
    return rows[0]


def encode_all(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[EncodedRow], list[int]]:
    """All rows in one batched call, and which of them had to be cut; with None none is."""
    leading = leading_tokens(tokenizer)
    stretches = [_stretches(example) for example in examples]
    ids = iter(token_ids([part.text for row in stretches for part in row], tokenizer))
    rows: list[EncodedRow] = []
    cut = []
    for example, stretch in zip(examples, stretches, strict=True):
        row = _assembled(example, stretch, [next(ids) for _ in stretch], leading, tokenizer)
        if max_length is not None and (excess := length(row) + example.spare - max_length) > 0:
            row = _cut(example, excess, leading, tokenizer, max_length)
            cut.append(len(rows))
        rows.append(row)
    return rows, cut


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    distinct = list(dict.fromkeys(texts))  # the words of labels come again and again
    ids = tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
    found = dict(zip(distinct, ids, strict=True))
    return [found[text] for text in texts]


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: BOS for most LMs that have one, nothing for others."""
    alone = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    starts = (i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)
    return whole[: next(starts, 0)]


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UserMistake("This tokenizer has no end-of-sequence token, which these label words need.")
    return tokenizer.eos_token_id


def _stretches(example: Example) -> list[_Stretch]:
    groups = groupby(example.segments, key=lambda segment: (segment.learned, segment.virtual > 0))
    stretches = []
    for (learned, _), group in groups:
        segments = list(group)
        text = "".join(segment.text for segment in segments)
        stretches.append(_Stretch(text, learned, sum(segment.virtual for segment in segments)))
    return [stretch for stretch in stretches if stretch.text or stretch.virtual]


def _assembled(
    example: Example,
    stretches: Sequence[_Stretch],
    ids: Sequence[list[int]],
    leading: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> EncodedRow:
    written = bool(ids) and ids[0][: len(leading)] == leading
    input_ids = [] if written or example.starts_by_itself else list(leading)
    labels = [NOT_LEARNED] * len(input_ids)
    placed = 0
    for stretch, words in zip(stretches, ids, strict=True):
        tokens = [*range(-placed - 1, -placed - stretch.virtual - 1, -1)] or words
        placed += stretch.virtual
        input_ids += tokens
        labels += tokens if stretch.learned else [NOT_LEARNED] * len(tokens)
    if example.ends_with_eos:
        input_ids.append(end_token(tokenizer))
        labels.append(end_token(tokenizer))
    return EncodedRow(input_ids=input_ids, labels=labels, label=example.label)


def length(row: EncodedRow) -> int:
    """In words of the LM: what is learned takes no text's place."""
    return sum(token >= 0 for token in row["input_ids"])


def _cut(
    example: Example, excess: int, leading: list[int], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedRow:
    while any(segment.gives_way and segment.text for segment in example.segments):
        example = replace(example, segments=_shortened(example.segments, excess, tokenizer))
        stretches = _stretches(example)
        ids = token_ids([part.text for part in stretches], tokenizer)
        row = _assembled(example, stretches, ids, leading, tokenizer)
        excess = length(row) + example.spare - max_length
        if excess <= 0:
            return row
    needed = max_length + excess
    raise UserMistake(
        f"The template and the target take {needed} tokens without any text, but data.max_length is"
        f" {max_length}: raise it or shorten the template."
    )


def _shortened(
    segments: tuple[Segment, ...], excess: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[Segment, ...]:
    """Without the last `excess` tokens of the last text that can give way."""
    place = max(i for i, segment in enumerate(segments) if segment.gives_way and segment.text)
    text = segments[place].text
    kept = token_ids([text], tokenizer)[0][: -excess or None]
    shorter = str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))
    shorter = shorter.rstrip("\N{REPLACEMENT CHARACTER}")  # half a character
    if len(shorter) >= len(text):  # decoding is not always the inverse of encoding: make sure of progress
        shorter = text[:-1]
    return (*segments[:place], replace(segments[place], text=shorter), *segments[place + 1 :])
