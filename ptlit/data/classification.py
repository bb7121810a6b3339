"""Texts with one label each."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal

from transformers import PreTrainedTokenizerBase

from ptlit.data import templates
from ptlit.data.collate import IndexedRow
from ptlit.data.datamodule import OnBadRow, TextData
from ptlit.data.example import encode_all, leading_tokens
from ptlit.data.fewer_words import FewerWords, Row
from ptlit.data.formats import Table, read_table
from ptlit.data.label_words import LabelWords
from ptlit.data.rows import Columns, PlacedRow, UsableRows, clean_rows
from ptlit.data.sampler import Batches
from ptlit.data.source_rows import SourceRows
from ptlit.data.sources import BUNDLED_TWEETS, check_source
from ptlit.data.templates import Template, content_free
from ptlit.data.token_cache import Tokens
from ptlit.mistake import UserMistake


class ClassificationData(TextData[PlacedRow]):
    label_words: LabelWords

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        path: str,
        subset: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        folds: int | None = None,
        fold: int | None = None,
        few_shot: int | None = None,
        balanced: bool = False,
        stratified: bool = False,
        class_weights: Literal["balanced"] | dict[str, float] | None = None,
        text_column: str = "text",
        label_column: str = "label",
        template: str = "Tweet: {text}\nSentiment:",
        label_words: dict[str, str | list[str]] | None = None,
        calibrate: bool = False,
        drop_words: float = 0.0,
        instruction: str | None = None,
        before_bos: bool = False,
        max_length: int = 256,
        batch_size: int = 8,
        max_tokens: int | None = None,
        by_length: bool = True,
        eval_batch_size: int = 32,
        limit: int | None = None,
        val_limit: int | None = None,
        test_limit: int | None = None,
        encoding: str | None = None,
        on_bad_row: OnBadRow = "error",
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            path=path,
            subset=subset,
            val_path=val_path,
            test_path=test_path,
            folds=folds,
            fold=fold,
            few_shot=few_shot,
            balanced=balanced,
            stratified=stratified,
            before_bos=before_bos,
            max_length=max_length,
            batch_size=batch_size,
            max_tokens=max_tokens,
            by_length=by_length,
            eval_batch_size=eval_batch_size,
            limit=limit,
            val_limit=val_limit,
            test_limit=test_limit,
            encoding=encoding,
            on_bad_row=on_bad_row,
            num_workers=num_workers,
            seed=seed,
        )
        self.columns = Columns(text_column, label_column)
        self.template = Template(template)
        self.slots = self.template.slots
        self._label_words = label_words
        self.declared = {str(name): word for name, word in label_words.items()} if label_words else None
        self.calibrate = calibrate
        if not 0 <= drop_words < 1:
            raise UserMistake(
                f"data.drop_words={drop_words} must be a number from 0 up to, not including, 1."
            )
        self.drop_words = drop_words
        self._instruction = instruction
        if self.declared is not None and len(self.declared) < 2:
            raise UserMistake(f"data.label_words={label_words!r} must name at least two labels.")
        self._class_weights = class_weights
        self._check_class_weights(self.declared)
        check_source(path, subset, val_path, test_path)

    def _check_class_weights(self, names: Collection[str] | None) -> None:
        """As far as the labels are known."""
        weights = self._class_weights
        if weights == "balanced":
            if self.balanced:
                raise UserMistake(
                    "data.balanced=true and data.class_weights=balanced mend the same thing: give one."
                )
        elif isinstance(weights, dict):
            if wrong := [weight for weight in weights.values() if not 0 < weight < math.inf]:
                raise UserMistake(f"data.class_weights={weights}: {wrong[0]} must be a number above 0.")
            if names is not None and {spelled(name, names) for name in weights} != set(names):
                raise UserMistake(
                    f"data.class_weights={weights} must give a weight to each label: {', '.join(names)}."
                )
        elif weights is not None:
            raise UserMistake(f"data.class_weights={weights!r} must be balanced, or a number for each label.")

    def setup_file(self, file: Path) -> None:
        """Instead of `setup`: one file alone, as the test split. The labels must be declared."""
        assert self.declared is not None
        rows, offered = self._read("test", read_table(file, self.encoding), self.columns, self.declared)
        self.template.check_fields(offered)
        self._prepare(self.declared)
        self.rows["test"] = self._in_tokens("test", rows).shown(self._shown)

    @property
    def instruction(self) -> str:
        return self._instruction or f"Choose the label of the text: {', '.join(self.label_words.names)}."

    @property
    def _leading(self) -> list[int]:
        return leading_tokens(self.tokenizer)

    @property
    def content(self) -> str:
        return f"labels {', '.join(self.label_words.names)}"

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        names, weights = self.label_words.names, self._class_weights
        if weights == "balanced":  # so that each label counts the same in the sum over all rows
            counts = self._counts("train")
            rows = sum(counts.values())
            return tuple(rows / (len(names) * max(counts[name], 1)) for name in names)
        if isinstance(weights, dict):
            by_name = {spelled(name, names): weight for name, weight in weights.items()}
            return tuple(float(by_name[name]) for name in names)
        return None

    @property
    def _label_column(self) -> str | None:
        return self.columns.label

    def _cleaned(self, tables: dict[str, Table]) -> dict[str, SourceRows[PlacedRow]]:
        columns = Columns("text", "label") if self.path == BUNDLED_TWEETS else self.columns
        self._spell_booleans(tables["train"], columns)
        labels: Collection[str] | None = self.declared
        splits: dict[str, SourceRows[PlacedRow]] = {}
        offered: dict[str, set[str]] = {}
        for split, table in tables.items():  # the training rows come first and tell the labels
            splits[split], offered[split] = self._read(split, table, columns, labels)
            labels = labels or sorted(splits[split].traits.counts())
        self.template.check_fields(offered["train"])
        return splits

    def _spell_booleans(self, table: Table, columns: Columns) -> None:
        """Before any row is judged by its label, as the training rows spell theirs."""
        if self._label_words and any(isinstance(name, bool) for name in self._label_words):
            found = {row["label"] for row in clean_rows(table, columns, None)}
            self.declared = {spelled(name, found): word for name, word in self._label_words.items()}

    def groups(self, split: str) -> list[str | None]:
        """Of each row, where rows have one."""
        return [row["group"] for row in self.rows[split]] if self.path == BUNDLED_TWEETS else []

    def _read(
        self, split: str, table: Table, columns: Columns, labels: Collection[str] | None
    ) -> tuple[SourceRows[PlacedRow], set[str]]:
        """The rows, with those of their other columns that matter; and all that hold anything."""
        usable = clean_rows(table, columns, labels, self.template.fields)
        matter = {*self.template.fields, *(("topic",) if self.path == BUNDLED_TWEETS else ())}
        offered: set[str] = set()

        def slim(record: dict[str, object], place: str) -> PlacedRow | str:
            row = usable.row_of(record, place)
            if isinstance(row, str):
                return row
            offered.update(row["fields"])
            fields = {name: value for name, value in row["fields"].items() if name in matter}
            return PlacedRow(text=row["text"], label=row["label"], fields=fields, place=place)

        return self._put_on_disk(split, UsableRows(table, slim)), offered

    def _prepare(self, strata: Collection[str]) -> None:
        names = tuple(self.declared or sorted(strata))
        if len(names) < 2:
            raise UserMistake(f"{self.path}: every row has the label {names[0]!r}; two are needed at least.")
        self._check_class_weights(names)
        self.label_words = listening(self.template, names, self.declared, self.tokenizer, self.calibrate)

    @property
    def _how(self) -> tuple[tuple[ModuleType, ...], object]:
        return (templates,), (self.template.template, self.label_words, self.max_length)

    def _content(self, row: PlacedRow) -> object:
        return row["text"], row["label"], row["fields"]

    def _tokens(self, rows: Sequence[PlacedRow]) -> Tokens:
        names = self.label_words.names
        fields = [row["fields"] for row in rows]
        bad = self.template.without_room(fields, self.label_words, self.tokenizer, self.max_length)
        good = [i for i in range(len(rows)) if i not in bad]
        lessons = self.template.lessons(
            ((rows[i]["text"], fields[i], names.index(rows[i]["label"])) for i in good), self.label_words
        )
        encoded, cut = encode_all(lessons, self.tokenizer, self.max_length)
        reasons = [(i, f"{rows[i]['place']}: {why}") for i, why in bad.items()]
        return Tokens(encoded, good, [good[i] for i in cut], reasons)

    def _training_rows(self, batches: Batches) -> Sequence[IndexedRow]:
        if not self.drop_words:
            return super()._training_rows(batches)
        return FewerWords(
            self.rows["train"],
            self.template,
            self.label_words,
            self.tokenizer,
            self.max_length,
            self.drop_words,
            self.seed,
            batches,
        )

    @property
    def _shown(self) -> Callable[[PlacedRow], Row]:
        return partial(as_shown, self.label_words.names, self.path == BUNDLED_TWEETS)

    def _text(self, row: PlacedRow) -> str:
        return row["text"]

    def _stratum(self, row: PlacedRow) -> str:
        return row["label"]

    def _counts(self, split: str) -> dict[str, int]:
        counts = Counter(self.encoded[split].label)
        return {name: counts[i] for i, name in enumerate(self.label_words.names)}


def spelled(name: object, labels: Collection[str]) -> str:
    """As one of the labels is: a config makes the same boolean of true, True and TRUE. Where several are
    there it is the one in lower case.
    """
    if not isinstance(name, bool):
        return str(name)
    return max((label for label in labels if label.lower() == str(name).lower()), default=str(name))


def as_shown(names: Sequence[str], has_topic: bool, row: PlacedRow) -> Row:
    group = row["fields"].get("topic") if has_topic else None
    return Row(text=row["text"], label=names.index(row["label"]), group=group, fields=row["fields"])


def listening(
    template: Template,
    names: Sequence[str],
    words: Mapping[str, str | Sequence[str]] | None,
    tokenizer: PreTrainedTokenizerBase,
    calibrate: bool,
) -> LabelWords:
    """What is listened for after the template; in training and wherever a run is opened again."""
    nothing = content_free(template, tokenizer) if calibrate else ()
    return LabelWords.make(names, tokenizer, words=words, lead=template.lead, content_free=nothing)
