"""Dialogues in which the assistant's replies are learned."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypedDict

from transformers import PreTrainedTokenizerBase

from ptlit.data import chat_template
from ptlit.data.chat_formats import FORMATS, BadDialogue, Format, read_dialogue, recognised
from ptlit.data.chat_template import SAMPLE, ChatTemplate, Lesson, is_file_name
from ptlit.data.datamodule import OnBadRow, TextData
from ptlit.data.dialogues import Message
from ptlit.data.example import NOT_LEARNED, EncodedRow, encode_all, token_ids
from ptlit.data.formats import Table
from ptlit.data.rows import UsableRows
from ptlit.data.source_rows import SourceRows
from ptlit.data.sources import BUNDLED_DIALOGUES, check_source
from ptlit.data.token_cache import Tokens
from ptlit.mistake import UserMistake

Learn = Literal["all_replies", "last_reply"]


class Dialogue(TypedDict):
    messages: list[Message]
    place: str  # in its file


class ChatData(TextData[Dialogue]):
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
        format: Format | None = None,
        learn: Learn = "all_replies",
        system: str | None = None,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        instruction: str | None = None,
        before_bos: bool = False,
        max_length: int = 512,
        batch_size: int = 4,
        max_tokens: int | None = None,
        by_length: bool = True,
        eval_batch_size: int = 8,
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
            few_shot=None,
            balanced=False,
            stratified=False,
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
        if format is not None and format not in FORMATS:
            raise UserMistake(f"data.format={format!r} must be one of {', '.join(FORMATS)}.")
        if learn not in ("all_replies", "last_reply"):
            raise UserMistake(f"data.learn={learn!r} must be all_replies or last_reply.")
        self.format: Format | None = format
        self.learn: Learn = learn
        self.system = system.strip() if system else None
        self.chat_template = chat_template
        self.template_options = template_options
        self._instruction = instruction
        self.template: ChatTemplate
        if chat_template is not None and is_file_name(chat_template) and not Path(chat_template).is_file():
            raise UserMistake(f"data.chat_template={chat_template}: there is no such file.")
        check_source(path, subset, val_path, test_path)

    @property
    def instruction(self) -> str:
        return (
            self._instruction or "You are a helpful assistant. Reply to the user in the way you were shown."
        )

    @property
    def _leading(self) -> list[int]:
        return self.template.leading

    @property
    def content(self) -> str:
        replies = sum(self._counts(split)["replies"] for split in self.rows)
        return f"{replies:,} replies to learn or to judge"

    def _cleaned(self, tables: dict[str, Table]) -> dict[str, SourceRows[Dialogue]]:
        self.template = ChatTemplate(self.tokenizer, self.chat_template, self.template_options)
        splits = {split: self._dialogues(split, table) for split, table in tables.items()}
        if self.path == BUNDLED_DIALOGUES:
            self.notes.append(
                "most dialogues of several turns are synthetic: single questions on one topic, joined"
            )
        return splits

    def _dialogues(self, split: str, table: Table) -> SourceRows[Dialogue]:
        kind = self.format or _format(table)
        if kind is None:
            known = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in FORMATS.items())
            raise UserMistake(
                f"{table.name} has the columns {', '.join(map(repr, _columns(table)))}, which are no form of"
                f" dialogue that is known ({known})."
            )

        unanswered = 0

        def dialogue(record: dict[str, object], place: str) -> Dialogue | str:
            nonlocal unanswered
            messages = read_dialogue(record, kind, self.system)
            if isinstance(messages, str):
                return messages
            if not self._learned(messages):
                which = "the last reply has" if self.learn == "last_reply" else "all replies have"
                return f"{which} the weight 0, so there is nothing to learn"
            if messages[-1]["role"] == "user":
                unanswered += 1
                messages = messages[:-1]
            return Dialogue(messages=messages, place=place)

        found = self._put_on_disk(split, UsableRows(table, dialogue))
        if unanswered:
            ends = "1 dialogue ends" if unanswered == 1 else f"{unanswered:,} dialogues end"
            self.notes.append(f"{table.name}: {ends} in a question without a reply, which is left out")
        return found

    def _prepare(self, strata: Collection[str]) -> None:
        """Nothing: a dialogue stands for itself."""

    @property
    def _how(self) -> tuple[tuple[ModuleType, ...], object]:
        sample = self.template.text(SAMPLE, ask=True)  # some templates write today's date
        written = (self.template.template or self.tokenizer.chat_template, self.template_options, sample)
        return (chat_template, sys.modules[__name__]), (written, self.learn, self.max_length)

    def _content(self, row: Dialogue) -> object:
        return row["messages"]

    @property
    def _shown(self) -> Callable[[Dialogue], Dialogue]:
        return as_shown

    def _tokens(self, rows: Sequence[Dialogue]) -> Tokens:
        bad: dict[int, str] = {}
        cut: set[int] = set()
        done: list[tuple[int, EncodedRow]] = []
        waiting: list[tuple[int, Lesson]] = []

        def wait(i: int, messages: Sequence[Message], replies: Sequence[int]) -> None:
            try:
                waiting.extend((i, lesson) for lesson in self.template.lessons(messages, replies))
            except BadDialogue as problem:
                bad[i] = str(problem)

        for i, row in enumerate(rows):
            wait(i, row["messages"], self._learned(row["messages"]))
        while waiting:
            lessons, waiting = waiting, []
            for (i, lesson), (tokens, exact) in zip(lessons, self._read(lessons), strict=True):
                shorter = without_oldest_turn(lesson.messages)
                if not exact:  # a token that spans the start of a reply, seen once another reply follows
                    for place in lesson.replies:
                        wait(i, lesson.messages, [place])
                elif len(tokens["input_ids"]) <= self.max_length:
                    done.append((i, tokens))
                elif shorter is not None:
                    cut.add(i)
                    gone = len(lesson.messages) - len(shorter)
                    first = shorter[0]["role"] == "system"
                    wait(i, shorter, [place - gone for place in lesson.replies if place - gone > first])
                else:
                    count = len(tokens["input_ids"])
                    bad[i] = f"question and reply take {count:,} tokens, data.max_length={self.max_length}"
        for i, tokens in done:
            if all(label == NOT_LEARNED for label in tokens["labels"]):
                bad[i] = "the reply has no token for this LM, so there is nothing to learn"
        good = sorted((each for each in done if each[0] not in bad), key=lambda each: each[0])
        reasons = [(i, f"{rows[i]['place']}: {why}") for i, why in sorted(bad.items())]
        return Tokens([tokens for _, tokens in good], [i for i, _ in good], cut, reasons)

    def _learned(self, messages: Sequence[Message]) -> list[int]:
        replies = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        chosen = replies if self.learn == "all_replies" else replies[-1:]
        return [place for place in chosen if "weight" not in messages[place]]

    def _read(self, lessons: Sequence[tuple[int, Lesson]]) -> list[tuple[EncodedRow, bool]]:
        """The tokens of each, and whether every reply stands behind exactly what inference would read."""
        encoded, _ = encode_all([lesson.example() for _, lesson in lessons], self.tokenizer, None)
        # What stands before the first reply is tokenised whole anyway; the others need a look.
        texts = [[asked for asked, _ in lesson.texts[1:]] for _, lesson in lessons]
        ids = iter(token_ids([text for each in texts for text in each], self.tokenizer))
        judged = []
        for row, each in zip(encoded, texts, strict=True):
            starts = _starts_of_replies(row["labels"])[1:]
            judged.append((row, [next(ids) for _ in each] == [row["input_ids"][:start] for start in starts]))
        return judged

    def _text(self, row: Dialogue) -> str:
        """The user's side: other answers to the same questions stay together."""
        return "\n".join(message["content"] for message in row["messages"] if message["role"] == "user")

    def _stratum(self, row: Dialogue) -> str:
        return ""

    def _counts(self, split: str) -> dict[str, int]:
        return {"replies": sum(len(_starts_of_replies(row["labels"])) for row in self.encoded[split])}


def as_shown(row: Dialogue) -> Dialogue:
    return row


def without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """The system prompt stays. None when one question with its reply is all there is."""
    first = messages[0]["role"] == "system"
    return [*messages[:first], *messages[first + 2 :]] if len(messages) - first > 2 else None


def _format(table: Table) -> Format | None:
    """That of the first record that has one: a broken one may stand before it."""
    if table.columns is not None:
        return recognised(table.columns)
    kinds = (recognised(record) for _, record in table.records if isinstance(record, dict))
    return next((kind for kind in kinds if kind is not None), None)


def _columns(table: Table) -> tuple[str, ...]:
    """Declared by the format, or those of the first row that can be read."""
    readable = (tuple(record) for _, record in table.records if isinstance(record, dict))
    return table.columns or next(readable, ())


def _starts_of_replies(labels: Sequence[int]) -> list[int]:
    learned = [label != NOT_LEARNED for label in labels]
    return [i for i, here in enumerate(learned) if here and not (i and learned[i - 1])]
