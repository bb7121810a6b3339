"""Texts with one label each: from a path to batches for training, validation and testing."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal, TypedDict

import lightning
from transformers import PreTrainedTokenizerBase

from ptlit.data.collate import Collate, IndexedRow
from ptlit.data.example import encode_all
from ptlit.data.formats import read_table
from ptlit.data.label_words import LabelWords
from ptlit.data.loader import ResumableLoader
from ptlit.data.rows import Columns, SourceRow, clean_rows
from ptlit.data.sampler import Batches
from ptlit.data.sources import BUNDLED, check_source, read_splits
from ptlit.data.splitting import limited, same_text, split_by_content
from ptlit.data.templates import Template
from ptlit.mistake import UserMistake


class Row(TypedDict):
    text: str
    label: int
    group: str | None  # the topic of a bundled tweet


class SplitSummary(TypedDict):
    rows: int
    labels: dict[str, int]
    skipped: int  # bad rows left out
    truncated: int
    median_tokens: float
    also_in_train: int  # rows whose text, but for case and punctuation, is in train too


class Summary(TypedDict):
    splits: dict[str, SplitSummary]
    notes: list[str]


class ClassificationData(lightning.LightningDataModule):
    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        path: str,
        subset: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        template: str = "Tweet: {text}\nSentiment:",
        label_words: dict[str, str] | None = None,
        instruction: str | None = None,
        max_length: int = 256,
        batch_size: int = 8,
        max_tokens: int | None = None,
        by_length: bool = True,
        eval_batch_size: int = 32,
        limit: int | None = None,
        val_limit: int | None = None,
        test_limit: int | None = None,
        encoding: str | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.path = path
        self.subset = subset
        self.val_path = val_path
        self.test_path = test_path
        self.columns = Columns(text_column, label_column)
        self.template = Template(template)
        self.declared = {str(name): word for name, word in label_words.items()} if label_words else None
        self._instruction = instruction
        self.max_length = _at_least(1, "max_length", max_length)
        self.batch_size = _at_least(1, "batch_size", batch_size)
        self.max_tokens = _at_least_one_or_all("max_tokens", max_tokens)
        if max_tokens is not None and max_tokens < max_length:
            raise UserMistake(
                f"data.max_tokens={max_tokens} does not hold one row of data.max_length={max_length} tokens: "
                "raise the one or lower the other."
            )
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
        self.on_bad_row = on_bad_row
        self.num_workers = _at_least(0, "num_workers", num_workers)
        self.seed = seed
        if self.declared is not None and len(self.declared) < 2:
            raise UserMistake(f"data.label_words={label_words!r} must name at least two labels.")
        check_source(path, subset, val_path, test_path)
        self.label_words: LabelWords
        self.rows: dict[str, list[Row]] = {}
        self.encoded: dict[str, list[IndexedRow]] = {}
        self.skipped: dict[str, int] = {}
        self.truncated: dict[str, int] = {}
        self.notes: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        if self.rows:
            return
        splits, skipped, notes = self._read()
        names = tuple(self.declared or sorted({row["label"] for row in splits["train"]}))
        if len(names) < 2:
            raise UserMistake(f"{self.path}: every row has the label {names[0]!r}; two are needed at least.")
        label_words = LabelWords.make(
            names,
            self.tokenizer,
            words=list(self.declared.values()) if self.declared else None,
            lead=self.template.lead,
        )
        for split, rows in splits.items():
            rows = limited(rows, self.limits[split], self.seed)
            self.encoded[split], self.truncated[split] = self._encoded(rows, label_words)
            splits[split] = rows
        self.label_words, self.skipped, self.notes = label_words, skipped, notes
        self.rows = {split: [self._row(row, names) for row in rows] for split, rows in splits.items()}

    def setup_file(self, file: Path) -> None:
        """Instead of `setup`: one file alone, as the test split. The labels must be declared."""
        assert self.declared is not None
        names, table = tuple(self.declared), read_table(file, self.encoding)
        rows, skipped = clean_rows(table, self.columns, names, self.on_bad_row, self.template.fields)
        self._check_fields(rows)
        words = list(self.declared.values())
        self.label_words = LabelWords.make(names, self.tokenizer, words=words, lead=self.template.lead)
        self.encoded["test"], self.truncated["test"] = self._encoded(rows, self.label_words)
        self.skipped["test"] = skipped
        self.rows["test"] = [self._row(row, names) for row in rows]

    @property
    def instruction(self) -> str:
        """The task in words, from which a prompt can start."""
        return self._instruction or f"Choose the label of the text: {', '.join(self.label_words.names)}."

    def _read(self) -> tuple[dict[str, list[SourceRow]], dict[str, int], list[str]]:
        tables = read_splits(
            self.path,
            subset=self.subset,
            val_path=self.val_path,
            test_path=self.test_path,
            label_column=self.columns.label,
            encoding=self.encoding,
        )
        columns = Columns("text", "label") if self.path == BUNDLED else self.columns
        labels = list(self.declared) if self.declared else None
        splits: dict[str, list[SourceRow]] = {}
        skipped: dict[str, int] = {}
        for split in sorted(tables, key=("train", "val", "test").index):  # the training rows tell the labels
            splits[split], skipped[split] = clean_rows(
                tables[split], columns, labels, self.on_bad_row, self.template.fields
            )
            labels = labels or sorted({row["label"] for row in splits[split]})
        self._check_fields(splits["train"])
        wanted = [split for split in ("val", "test") if split not in splits]
        if not wanted:
            return splits, skipped, []
        splits |= split_by_content(splits["train"], wanted, self.seed)
        if empty := [split for split in wanted if not splits[split]]:
            raise UserMistake(
                f"{self.path} has too few rows of each label to set some aside: give data.{empty[0]}_path."
            )
        taken = " and ".join(wanted)
        note = f"{taken}: a tenth of each label set aside from {self.path}, copies of a text kept together"
        return splits, skipped, [note]

    def _check_fields(self, rows: Sequence[SourceRow]) -> None:
        self.template.check_fields({field for row in rows for field in row["fields"]})

    def _encoded(self, rows: list[SourceRow], label_words: LabelWords) -> tuple[list[IndexedRow], int]:
        examples = []
        for row in rows:
            label = label_words.names.index(row["label"])
            examples.append(
                self.template.example(
                    row["text"],
                    row["fields"],
                    target=label_words.words[label],
                    label=label,
                    ends_with_eos=label_words.ends_with_eos,
                    # The same of a text is read whichever label is right: its end must not tell.
                    spare=label_words.longest - len(label_words.token_ids[label]),
                )
            )
        encoded, truncated = encode_all(examples, self.tokenizer, self.max_length)
        return [IndexedRow(**row, row=i) for i, row in enumerate(encoded)], truncated

    def _row(self, row: SourceRow, names: tuple[str, ...]) -> Row:
        group = row["fields"]["topic"] if self.path == BUNDLED else None
        return Row(text=row["text"], label=names.index(row["label"]), group=group)

    def summary(self) -> Summary:
        in_train = {same_text(row["text"]) for row in self.rows["train"]}
        splits = {}
        for split, rows in self.rows.items():
            counts = Counter(row["label"] for row in rows)
            copies = 0 if split == "train" else sum(same_text(row["text"]) in in_train for row in rows)
            splits[split] = SplitSummary(
                rows=len(rows),
                labels={name: counts[i] for i, name in enumerate(self.label_words.names)},
                skipped=self.skipped.get(split, 0),
                truncated=self.truncated[split],
                median_tokens=median(len(row["input_ids"]) for row in self.encoded[split]),
                also_in_train=copies,
            )
        return Summary(splits=splits, notes=list(self.notes))

    def train_dataloader(self) -> ResumableLoader:
        batches = Batches(
            self._lengths("train"),
            self.batch_size,
            max_tokens=self.max_tokens,
            by_length=self.by_length,
            seed=self.seed,
        )
        return self._loader("train", batches)

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
        return [len(row["input_ids"]) for row in self.encoded[split]]

    def _loader(self, split: str, batches: Batches) -> ResumableLoader:
        collate = Collate(self.tokenizer.pad_token_id or 0)
        rows = self.encoded[split]
        return ResumableLoader(rows, batches, collate, num_workers=self.num_workers, seed=self.seed)


def _at_least(least: int, key: str, value: int) -> int:
    if value < least:
        raise UserMistake(f"data.{key}={value} must be at least {least}.")
    return value


def _at_least_one_or_all(key: str, value: int | None) -> int | None:
    return None if value is None else _at_least(1, key, value)
