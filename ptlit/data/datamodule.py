"""What every data module does: from a path to batches for training, validation and testing.

A kind of data says how a record becomes a row and how a row becomes tokens. Reading, setting aside, limiting,
batching and counting are the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from statistics import median
from types import ModuleType
from typing import Any, Generic, Literal, TypedDict, TypeVar

import lightning
import numpy
from transformers import PreTrainedTokenizerBase

from ptlit.data.collate import Collate, IndexedRow
from ptlit.data.encoding import encode_rows
from ptlit.data.formats import Table
from ptlit.data.label_words import LabelWords
from ptlit.data.loader import ResumableLoader
from ptlit.data.rows import UsableRows
from ptlit.data.sampler import Batches
from ptlit.data.setting_aside import SettingAside
from ptlit.data.source_rows import ShownRows, SourceRows, put_on_disk
from ptlit.data.sources import read_splits
from ptlit.data.splitting import Places, limited
from ptlit.data.token_cache import TokenCache, Tokens
from ptlit.data.token_rows import TokenRows
from ptlit.mistake import UserMistake

R = TypeVar("R")  # a row as it was read
OnBadRow = Literal["error", "skip"]


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
        stratified: bool,
        before_bos: bool,
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
        self.before_bos = before_bos
        self.max_length = _at_least(1, "max_length", max_length)
        self.batch_size = _at_least(1, "batch_size", batch_size)
        self.max_tokens = _at_least_one_or_all("max_tokens", max_tokens)
        if max_tokens is not None and max_tokens < max_length:
            raise UserMistake(
                f"data.max_tokens={max_tokens} does not hold one row of data.max_length={max_length} tokens: "
                "raise the one or lower the other."
            )
        self.setting_aside = SettingAside(
            path,
            {"val_path": val_path, "test_path": test_path},
            folds,
            fold,
            _at_least_one_or_all("few_shot", few_shot),
            seed,
        )
        if few_shot is not None and limit is not None:
            raise UserMistake(
                f"data.few_shot={few_shot} and data.limit={limit} both choose the training rows: give one."
            )
        self.balanced, self.stratified = balanced, stratified
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
        self.rows: dict[str, ShownRows] = {}  # as a person would look at them
        self.encoded: dict[str, TokenRows] = {}
        self.skipped: dict[str, int] = {}
        self.cut: dict[str, bytearray] = {}  # of each of `rows`, whether it was too long
        self.also_in_train: dict[str, int] = {}
        self.notes: list[str] = []
        self.sets_aside = False  # val or test, out of the rows of train

    @property
    @abstractmethod
    def instruction(self) -> str:
        """The task in words, from which a prompt can start."""

    @property
    def leading(self) -> list[int]:
        """What stands before virtual tokens that have no slots: BOS, unless it is said otherwise."""
        return [] if self.before_bos else self._leading

    @property
    @abstractmethod
    def _leading(self) -> list[int]:
        """The tokenizer's own tokens that every row begins with."""

    @property
    @abstractmethod
    def content(self) -> str:
        """What there is to learn, in a few words."""

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """What a training row of each label counts, where labels do not all count the same."""
        return None

    @abstractmethod
    def _cleaned(self, tables: dict[str, Table]) -> dict[str, SourceRows[R]]:
        """The usable rows of each split, train first."""

    @abstractmethod
    def _prepare(self, strata: Collection[str]) -> None:
        """Whatever the training rows decide for all rows. They were of these before any were set aside, so
        that every fold has the same.
        """

    @property
    @abstractmethod
    def _how(self) -> tuple[tuple[ModuleType, ...], object]:
        """The modules and the settings that decide what tokens a row becomes."""

    @abstractmethod
    def _tokens(self, rows: Sequence[R]) -> Tokens: ...

    def _content(self, row: R) -> object:
        """What of a row becomes tokens."""
        return row

    @property
    @abstractmethod
    def _shown(self) -> Callable[[R], Any]:
        """What a person would look at of a row. It has to pickle."""

    @abstractmethod
    def _text(self, row: R) -> str:
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
        splits = self._cleaned({split: tables[split] for split in order})
        del tables  # of a JSON file or bundled rows all stand in memory
        strata = splits["train"].traits.counts().keys()
        notes = self.setting_aside.missing_splits(splits, by_label=self._label_column is not None)
        self.sets_aside = len(notes) > 0
        self._prepare(strata)
        notes += self.setting_aside.few_of_train(splits)
        kept = {
            split: self._in_tokens(split, rows.at(limited(rows.traits, self.limits[split], self.seed)))
            for split, rows in splits.items()
        }
        in_train = kept["train"].traits.keys
        self.also_in_train = {
            split: 0 if split == "train" else int(numpy.isin(rows.traits.keys, in_train).sum())
            for split, rows in kept.items()
        }
        self.notes += notes
        self.rows = {split: rows.shown(self._shown) for split, rows in kept.items()}

    def _put_on_disk(self, split: str, usable: UsableRows[R]) -> SourceRows[R]:
        rows = put_on_disk(usable.table.name, usable, self.seed, self._text, self._stratum)
        usable.bad.complain(self.on_bad_row, any_left=len(rows) > 0)
        self.skipped[split] = usable.bad.count
        return rows

    def _in_tokens(self, split: str, rows: SourceRows[R]) -> SourceRows[R]:
        """Those of the rows that could be made tokens of."""
        cache = TokenCache(self.tokenizer, *self._how)
        found = encode_rows(rows, self._tokens, self._content, cache)
        found.bad.complain(self.on_bad_row, any_left=len(found.good) > 0)
        self.encoded[split], self.cut[split] = found.tokens, found.cut
        self.skipped[split] = self.skipped.get(split, 0) + found.bad.count
        return rows.at(found.places)

    @property
    def _label_column(self) -> str | None:
        """The column whose indices a hub data set has names for."""
        return None

    def summary(self) -> Summary:
        splits = {
            split: SplitSummary(
                rows=len(rows),
                counts=self._counts(split),
                skipped=self.skipped[split],
                truncated=sum(self.cut[split]),
                median_tokens=median(self._lengths(split).tolist()),
                also_in_train=self.also_in_train[split],
            )
            for split, rows in self.rows.items()
        }
        return Summary(splits=splits, notes=list(self.notes))

    def train_dataloader(self) -> ResumableLoader:
        batches = Batches(
            self._lengths("train"),
            self.batch_size,
            max_tokens=self.max_tokens,
            by_length=self.by_length,
            classes=self.encoded["train"].label,
            balanced=self.balanced,
            stratified=self.stratified,
            seed=self.seed,
        )
        return self._loader("train", batches, self._training_rows(batches))

    def _training_rows(self, batches: Batches) -> Sequence[IndexedRow]:
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

    def _lengths(self, split: str) -> Places:
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
