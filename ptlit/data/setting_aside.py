"""The splits that a source lacks, taken out of its training rows; and few of these, where few are wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptlit.data.source_rows import SourceRows
from ptlit.data.splitting import few_of_each, fold_by_content, split_by_content
from ptlit.mistake import UserMistake

Splits = dict[str, SourceRows[Any]]


@dataclass(frozen=True)
class SettingAside:
    """What it does to the splits it says in a few words, for the summary of the data."""

    path: str
    other_paths: Mapping[str, str | None]  # of val and test, by the names of their options
    folds: int | None
    fold: int | None
    few_shot: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.folds is None:
            if self.fold is not None:
                raise UserMistake(f"data.fold={self.fold} is one of how many: give data.folds=... too.")
            return
        if self.folds < 2:
            raise UserMistake(f"data.folds={self.folds} must be at least 2.")
        if self.fold is None or not 0 <= self.fold < self.folds:
            given = "" if self.fold is None else f"data.fold={self.fold}: "
            raise UserMistake(
                f"{given}data.folds={self.folds} wants data.fold=0 to {self.folds - 1}, the one to test."
            )
        for key, file in self.other_paths.items():
            if file is not None:
                raise UserMistake(
                    f"data.folds={self.folds} takes val and test out of data.path: leave out "
                    f"data.{key}={file}."
                )

    def missing_splits(self, splits: Splits, by_label: bool) -> list[str]:
        """Rows of train become the splits that the source lacks."""
        before = splits["train"].traits.counts()
        said = self._missing_splits(splits, by_label)
        left = splits["train"].traits.counts()
        gone = ", ".join(sorted(name for name in before if name not in left))
        if gone and len(left) < 2:
            raise UserMistake(
                f"{self.path} has too few different texts of {gone}: once val and test are set aside, none "
                "is left to train on, so give more of them, or files of their own for val and test."
            )
        unlearned = f"train has no row of {gone} left: such rows are judged, and none is learned from"
        return [*said, unlearned] if gone else said

    def _missing_splits(self, splits: Splits, by_label: bool) -> list[str]:
        said = self._test_fold(splits) if self.folds is not None and self.fold is not None else []
        wanted = [split for split in ("val", "test") if split not in splits]
        if not wanted:
            return said
        train = splits["train"]
        found = split_by_content(train.traits, wanted)
        splits |= {split: train.at(places) for split, places in found.items()}
        if empty := [split for split in wanted if not len(splits[split])]:
            each = " of each label" if by_label else ""
            raise UserMistake(
                f"{self.path} has too few rows{each} to set some aside: give data.{empty[0]}_path."
            )
        share = "a tenth of each label" if by_label else "a tenth"
        taken = " and ".join(wanted)
        return [*said, f"{taken}: {share} set aside from {self.path}, copies of a text kept together"]

    def _test_fold(self, splits: Splits) -> list[str]:
        assert self.folds is not None and self.fold is not None
        if own := [split for split in ("val", "test") if split in splits]:
            raise UserMistake(
                f"data.folds={self.folds} takes val and test out of one set of rows, and {self.path} brings"
                f" its own {' and '.join(own)}: give data.path=<its training file>, or leave out data.folds."
            )
        rows = splits["train"]
        others, here = fold_by_content(rows.traits, self.folds, self.fold)
        splits["train"], splits["test"] = rows.at(others), rows.at(here)
        if not len(here) or not len(others):
            raise UserMistake(f"{self.path} has too few different texts for data.folds={self.folds}.")
        return [f"test: fold {self.fold} of {self.folds} of {self.path}, copies of a text kept together"]

    def few_of_train(self, splits: Splits) -> list[str]:
        """All of them, where nothing else is said."""
        if self.few_shot is None:
            return []
        train = splits["train"]
        splits["train"] = train.at(few_of_each(train.traits, self.few_shot, self.seed))
        kept = splits["train"].traits.counts()
        short = [f"{name} {rows:,}" for name, rows in sorted(kept.items()) if rows < self.few_shot]
        lack = f"; fewer of {', '.join(short)}, which is all there are" if short else ""
        return [f"train: {self.few_shot:,} rows of each label out of {len(train):,}{lack}"]
