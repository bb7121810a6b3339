"""What every data module does: from a path to batches for training, validation and testing.

A kind of data says how a record becomes a row and how a row becomes tokens. Reading, setting aside, limiting,
batching and counting are the same for all.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from types import ModuleType
from typing import Any, Generic, Literal, TypedDict, TypeVar

import lightning
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ptlit.data.collate import Collate, IndexedRow
from ptlit.data.formats import Table
from ptlit.data.label_words import LabelWords
from ptlit.data.loader import ResumableLoader
from ptlit.data.sampler import Batches
from ptlit.data.sources import read_splits
from ptlit.data.splitting import few_of_each, fold_by_content, limited, same_text, split_by_content
from ptlit.data.token_cache import TokenCache, Tokens
from ptlit.data.token_rows import TokenRows
from ptlit.mistake import UserMistake

R = TypeVar("R")  # a row as it was read
OnBadRow = Literal["error", "skip"]


CHUNK = 4096  # rows that are tokenised together
MANY = 20_000  # rows, from which on one wants to see how far it is


@dataclass
class Encoded:
    """One split in tokens; `IndexedRow.row` points into `rows`."""

    rows: list[Any] = field(default_factory=list)
    tokens: TokenRows = field(default_factory=TokenRows)
    cut: set[int] = field(default_factory=set)  # those of `rows` that were too long
    bad: dict[int, str] = field(default_factory=dict)  # those of the source that turned out bad only now


class SplitSummary(TypedDict):
    rows: int
    counts: dict[str, int]  # rows of each label, or replies learned
    skipped: int  # bad rows left out
    truncated: int
    median_tokens: float
    also_in_train: int  # rows whose text, but for case and punctuation, is in train too


class Summary(TypedDict):
    splits: dict[str, SplitSummary]
    notes: list[str]


class TextData(lightning.LightningDataModule, ABC, Generic[R]):
    """Interface of all data modules."""

    label_words: LabelWords | None = None  # where the LM is to choose among labels
    slots: int = 0  # virtual tokens that stand within a row

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        path: str,
        subset: str | None,
        val_path: str | None,
        test_path: str | None,
        folds: int | None,
        fold: int | None,
        few_shot: int | None,
        balanced: bool,
        max_length: int,
        batch_size: int,
        max_tokens: int | None,
        by_length: bool,
        eval_batch_size: int,
        limit: int | None,
        val_limit: int | None,
        test_limit: int | None,
        encoding: str | None,
        on_bad_row: OnBadRow,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.path = path
        self.subset = subset
        self.val_path = val_path
        self.test_path = test_path
        self.max_length = _at_least(1, "max_length", max_length)
        self.batch_size = _at_least(1, "batch_size", batch_size)
        self.max_tokens = _at_least_one_or_all("max_tokens", max_tokens)
        if max_tokens is not None and max_tokens < max_length:
            raise UserMistake(
                f"data.max_tokens={max_tokens} does not hold one row of data.max_length={max_length} tokens: "
                "raise the one or lower the other."
            )
        self.folds, self.fold = folds, fold
        self._check_folds()
        self.few_shot = _at_least_one_or_all("few_shot", few_shot)
        if few_shot is not None and limit is not None:
            raise UserMistake(
                f"data.few_shot={few_shot} and data.limit={limit} both choose the training rows: give one."
            )
        self.balanced = balanced
        self.by_length = by_length
        self.eval_batch_size = _at_least(1, "eval_batch_size", eval_batch_size)
        self.limits = {
            "train": _at_least_one_or_all("limit", limit),
            "val": _at_least_one_or_all("val_limit", val_limit),
            "test": _at_least_one_or_all("test_limit", test_limit),
        }
        self.encoding = encoding
        if on_bad_row not in ("error", "skip"):
            raise UserMistake(f"data.on_bad_row={on_bad_row!r} must be error or skip.")
        self.on_bad_row: OnBadRow = on_bad_row
        self.num_workers = _at_least(0, "num_workers", num_workers)
        self.seed = seed
        self.rows: dict[str, list[Any]] = {}  # as a person would look at them
        self.encoded: dict[str, TokenRows] = {}
        self.skipped: dict[str, int] = {}
        self.cut: dict[str, set[int]] = {}
        self.notes: list[str] = []

    @property
    @abstractmethod
    def instruction(self) -> str:
        """The task in words, from which a prompt can start."""

    @property
    @abstractmethod
    def content(self) -> str:
        """What there is to learn, in a few words."""

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """What a training row of each label counts, where labels do not all count the same."""
        return None

    @abstractmethod
    def _cleaned(self, tables: dict[str, Table]) -> tuple[dict[str, list[R]], dict[str, int]]:
        """The usable rows of each split, train first, and how many were skipped."""

    @abstractmethod
    def _prepare(self, train: Sequence[R]) -> None:
        """Whatever the training rows decide for all rows."""

    @property
    @abstractmethod
    def _how(self) -> tuple[tuple[ModuleType, ...], object]:
        """The modules and the settings that decide what tokens a row becomes."""

    @abstractmethod
    def _tokens(self, rows: Sequence[R]) -> Tokens: ...

    def _content(self, row: R) -> object:
        """What of a row becomes tokens."""
        return row

    def _kept(self, row: R) -> Any:
        """What of a row is still wanted when it has become tokens."""
        return row

    @abstractmethod
    def _text(self, row: Any) -> str:
        """What makes two rows copies of each other."""

    @abstractmethod
    def _stratum(self, row: R) -> str:
        """Splits and limits take the same share of each of these."""

    @abstractmethod
    def _counts(self, split: str) -> dict[str, int]: ...

    def setup(self, stage: str | None = None) -> None:
        if self.rows:
            return
        tables = read_splits(
            self.path,
            subset=self.subset,
            val_path=self.val_path,
            test_path=self.test_path,
            label_column=self._label_column,
            encoding=self.encoding,
        )
        order = sorted(tables, key=("train", "val", "test").index)
        splits, skipped = self._cleaned({split: tables[split] for split in order})
        tables.clear()  # a large file would stand in memory twice
        notes = self._set_aside(splits)
        self._prepare(splits["train"])
        if self.few_shot is not None:
            notes += self._keep_few(splits, self.few_shot)
        found = {
            split: self._encode(limited(rows, self.limits[split], self.seed, self._stratum))
            for split, rows in splits.items()
        }
        self.encoded = {split: each.tokens for split, each in found.items()}
        self.cut = {split: each.cut for split, each in found.items()}
        self.skipped = {split: skipped.get(split, 0) + len(each.bad) for split, each in found.items()}
        self.notes += notes
        self.rows = {split: each.rows for split, each in found.items()}

    def _encode(self, rows: Sequence[R]) -> Encoded:
        """Rows that turn out bad leave no gap."""
        cache = TokenCache(self.tokenizer, *self._how)
        done = Encoded()
        with tqdm(total=len(rows), desc="Tokenising", unit=" rows", disable=len(rows) < MANY) as bar:
            for start in range(0, len(rows), CHUNK):
                here = rows[start : start + CHUNK]
                found = cache.tokens([self._content(row) for row in here], partial(self._tokens, here))
                bad = dict(found.bad)
                good = [place for place in range(len(here)) if place not in bad]
                place_of = {place: len(done.rows) + i for i, place in enumerate(good)}
                done.tokens.extend(found.rows, [place_of[place] for place in found.places])
                done.cut.update(place_of[place] for place in found.cut if place not in bad)
                done.bad |= {start + place: why for place, why in bad.items()}
                done.rows += [self._kept(here[place]) for place in good]
                bar.update(len(here))
        return done

    @property
    def _label_column(self) -> str | None:
        """The column whose indices a hub data set has names for."""
        return None

    def _set_aside(self, splits: dict[str, list[R]]) -> list[str]:
        """Rows of train become the splits that the source lacks; what to say of it."""
        said = self._test_fold(splits) if self.folds is not None and self.fold is not None else []
        wanted = [split for split in ("val", "test") if split not in splits]
        if not wanted:
            return said
        splits |= split_by_content(splits["train"], wanted, self.seed, self._text, self._stratum)
        if empty := [split for split in wanted if not splits[split]]:
            each = " of each label" if self._label_column else ""
            raise UserMistake(
                f"{self.path} has too few rows{each} to set some aside: give data.{empty[0]}_path."
            )
        taken = " and ".join(wanted)
        share = "a tenth of each label" if self._label_column else "a tenth"
        return [*said, f"{taken}: {share} set aside from {self.path}, copies of a text kept together"]

    def _check_folds(self) -> None:
        folds, fold = self.folds, self.fold
        if folds is None:
            if fold is not None:
                raise UserMistake(f"data.fold={fold} is one of how many: give data.folds=... too.")
            return
        _at_least(2, "folds", folds)
        if fold is None or not 0 <= fold < folds:
            given = "" if fold is None else f"data.fold={fold}: "
            raise UserMistake(f"{given}data.folds={folds} wants data.fold=0 to {folds - 1}, the one to test.")
        for key, file in (("val_path", self.val_path), ("test_path", self.test_path)):
            if file is not None:
                raise UserMistake(
                    f"data.folds={folds} takes val and test out of data.path: leave out data.{key}={file}."
                )

    def _test_fold(self, splits: dict[str, list[R]]) -> list[str]:
        assert self.folds is not None and self.fold is not None
        if own := [split for split in ("val", "test") if split in splits]:
            raise UserMistake(
                f"data.folds={self.folds} takes val and test out of one set of rows, and {self.path} brings"
                f" its own {' and '.join(own)}: give data.path=<its training file>, or leave out data.folds."
            )
        splits["train"], splits["test"] = fold_by_content(
            splits["train"], self.folds, self.fold, self.seed, self._text, self._stratum
        )
        if not splits["test"] or not splits["train"]:
            raise UserMistake(f"{self.path} has too few different texts for data.folds={self.folds}.")
        return [f"test: fold {self.fold} of {self.folds} of {self.path}, copies of a text kept together"]

    def _keep_few(self, splits: dict[str, list[R]], count: int) -> list[str]:
        offered = len(splits["train"])
        splits["train"] = few_of_each(splits["train"], count, self.seed, self._stratum)
        kept = Counter(map(self._stratum, splits["train"]))
        short = [f"{name} {rows:,}" for name, rows in sorted(kept.items()) if rows < count]
        lack = f"; fewer of {', '.join(short)}, which is all there are" if short else ""
        return [f"train: {count:,} rows of each label out of {offered:,}{lack}"]

    def summary(self) -> Summary:
        in_train = {same_text(self._text(row)) for row in self.rows["train"]}
        splits = {}
        for split, rows in self.rows.items():
            copies = 0 if split == "train" else sum(same_text(self._text(row)) in in_train for row in rows)
            splits[split] = SplitSummary(
                rows=len(rows),
                counts=self._counts(split),
                skipped=self.skipped[split],
                truncated=len(self.cut[split]),
                median_tokens=median(self.encoded[split].lengths),
                also_in_train=copies,
            )
        return Summary(splits=splits, notes=list(self.notes))

    def train_dataloader(self) -> ResumableLoader:
        batches = Batches(
            self._lengths("train"),
            self.batch_size,
            max_tokens=self.max_tokens,
            by_length=self.by_length,
            classes=self.encoded["train"].label if self.balanced else None,
            seed=self.seed,
        )
        return self._loader("train", batches, self._shown(batches))

    def _shown(self, batches: Batches) -> Sequence[IndexedRow]:
        """The rows of train as training meets them."""
        return self.encoded["train"]

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("val", self._in_order("val"))

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("test", self._in_order("test"))

    def eval_dataloader(self, split: str) -> ResumableLoader:
        """Any split, train too, as val and test are judged: every row once."""
        return self._loader(split, self._in_order(split))

    def _in_order(self, split: str) -> Batches:
        return Batches(self._lengths(split), self.eval_batch_size, shuffle=False)

    def _lengths(self, split: str) -> list[int]:
        return self.encoded[split].lengths

    def _loader(
        self, split: str, batches: Batches, rows: Sequence[IndexedRow] | None = None
    ) -> ResumableLoader:
        collate = Collate(self.tokenizer.pad_token_id or 0)
        rows = self.encoded[split] if rows is None else rows
        return ResumableLoader(rows, batches, collate, num_workers=self.num_workers, seed=self.seed)


def _at_least(least: int, key: str, value: int) -> int:
    if value < least:
        raise UserMistake(f"data.{key}={value} must be at least {least}.")
    return value


def _at_least_one_or_all(key: str, value: int | None) -> int | None:
    return None if value is None else _at_least(1, key, value)
