"""Training rows with some words of their text left out by chance, others in every epoch.

They are tokenised as they are shown, a batch at a time: what is left of a text is read as such a text would
be. What goes depends on nothing but seed, epoch and row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, overload

from numpy.random import Generator, default_rng
from transformers import PreTrainedTokenizerBase

from ptlit.data.collate import IndexedRow
from ptlit.data.example import encode_all
from ptlit.data.label_words import LabelWords
from ptlit.data.sampler import Batches
from ptlit.data.templates import Template

WORD = re.compile(r"\S+\s*")


class Row(TypedDict):
    text: str
    label: int
    group: str | None  # the topic of a bundled tweet
    fields: Mapping[str, str]  # other columns, as far as they matter


@dataclass(frozen=True)
class FewerWords(Sequence[IndexedRow]):
    """Each word of `rows` is left out at `rate`."""

    rows: Sequence[Row]
    template: Template
    label_words: LabelWords
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    rate: float
    seed: int
    batches: Batches  # which know the epoch

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> IndexedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[IndexedRow]: ...
    def __getitem__(self, index: int | slice) -> IndexedRow | list[IndexedRow]:
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[IndexedRow]:
        """A batch at once, as torch's loader asks for it."""
        rows = [self.rows[place] for place in indices]
        texts = [self._fewer(row["text"], place) for row, place in zip(rows, indices, strict=True)]
        lessons = [(text, row["fields"], row["label"]) for text, row in zip(texts, rows, strict=True)]
        examples = self.template.lessons(lessons, self.label_words)
        encoded, _ = encode_all(examples, self.tokenizer, self.max_length)
        return [IndexedRow(**row, row=place) for row, place in zip(encoded, indices, strict=True)]

    def _fewer(self, text: str, place: int) -> str:
        return fewer_words(text, self.rate, default_rng((self.seed, self.batches.epoch, place)))


def fewer_words(text: str, rate: float, chance: Generator) -> str:
    """Never none, if there are any; words are what white space sets apart."""
    words = WORD.findall(text)
    if not words:
        return text
    drawn = chance.random(len(words))
    stays = drawn >= rate
    stays[drawn.argmax()] = True
    return "".join(word for word, here in zip(words, stays, strict=True) if here)
