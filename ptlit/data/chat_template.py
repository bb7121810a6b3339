"""How an LM wants a dialogue written, and which stretches of it are its own replies.

The tokenizer's chat template is a program: what it writes for a reply is known only by letting it write the
dialogue once up to the reply and once with it. Some templates (Qwen3's) write a reply otherwise once another
follows; what is learned must be what inference meets, so such replies become rows of their own.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ptlit.data.chat_formats import BadDialogue
from ptlit.data.dialogues import Message
from ptlit.data.example import Example, Segment, leading_tokens, token_ids
from ptlit.mistake import UserMistake

SYSTEM = Message(role="system", content="Answer.")
SAMPLE = [Message(role="user", content="Question?"), Message(role="assistant", content="Answer.")]

# Of a template itself, or of what it computes.
FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


@dataclass(frozen=True)
class Lesson:
    """A dialogue up to one of its replies, and all the replies in it that are learned."""

    messages: tuple[Message, ...]
    replies: tuple[int, ...]  # places among the messages, the last one included
    texts: tuple[tuple[str, str], ...]  # of each: all that is read before it, and itself with its end of turn

    def example(self) -> Example:
        segments: list[Segment] = []
        done = ""
        for asked, reply in self.texts:
            segments += [Segment(asked.removeprefix(done)), Segment(reply, learned=True)]
            done = asked + reply
        return Example(tuple(segments), starts_by_itself=True)


class ChatTemplate:
    """`template` replaces the tokenizer's own; `options` are variables of it, such as enable_thinking."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        if template is not None and is_file_name(template):
            template = _read(Path(template))
        if template is None and not tokenizer.chat_template:
            raise UserMistake(
                "The tokenizer of this LM brings no chat template: give one as data.chat_template=..."
                " (Jinja, or a file *.jinja)."
            )
        self.template = template
        self.options = dict(options or {})
        try:
            _, reply = self._asked_and_reply(SAMPLE, 1)
        except BadDialogue as problem:
            raise UserMistake(f"data.chat_template: {problem}.") from problem
        *_, self.end_of_turn = reply.rpartition(SAMPLE[1]["content"])
        if not self.end_of_turn:
            raise UserMistake(
                "data.chat_template: nothing marks the end of a reply, so the LM would never learn to stop:"
                " write {{ eos_token }} behind it."
            )

    def text(self, messages: Sequence[Message], ask: bool) -> str:
        """The dialogue so far; with `ask` it ends where the LM is to reply."""
        said = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    said,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=ask,
                    **self.options,
                )
            )
        except FAILURES as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise BadDialogue(f"the chat template refuses this dialogue ({reason})") from error

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """What the LM reads before it replies."""
        return token_ids([self.text(messages, ask=True)], self.tokenizer)[0]

    @property
    def leading(self) -> list[int]:
        """What the tokenizer puts before a text, if every dialogue begins with it too."""
        leading = leading_tokens(self.tokenizer)
        begun = [self.ids(SAMPLE[:1])[: len(leading)]]
        with suppress(BadDialogue):  # a template may know no system prompt
            begun.append(self.ids([SYSTEM, *SAMPLE[:1]])[: len(leading)])
        return leading if all(each == leading for each in begun) else []

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end a reply."""
        end, eos = self._end_ids, self.tokenizer.eos_token_id
        return list(
            dict.fromkeys([*([eos] if isinstance(eos, int) else []), *(end if len(end) == 1 else [])])
        )

    @property
    def stop_strings(self) -> list[str]:
        """What ends a reply and is several tokens, so that none of them ends it alone."""
        return [self.end_of_turn] if len(self._end_ids) > 1 else []

    @property
    def shown_end(self) -> str:
        """What is left of the end of a turn where special tokens are not shown."""
        return str(self.tokenizer.decode(self._end_ids, skip_special_tokens=True)).strip()

    @property
    def _end_ids(self) -> list[int]:
        return token_ids([self.end_of_turn], self.tokenizer)[0]

    def reply(self, ids: Sequence[int]) -> str:
        """What is said in these tokens, without the end of the turn."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
        return text.removesuffix(self.shown_end).rstrip()

    def lessons(self, messages: Sequence[Message], replies: Sequence[int]) -> list[Lesson]:
        """One lesson for all the replies that stand unchanged in the whole; one for each of the others."""
        texts = {place: self._asked_and_reply(messages, place) for place in replies}
        whole = "".join(texts[replies[-1]])
        kept = [place for place in replies if whole.startswith("".join(texts[place]))]
        together = [*([place] for place in replies if place not in kept), kept]
        return [
            Lesson(tuple(messages[: places[-1] + 1]), tuple(places), tuple(texts[place] for place in places))
            for places in together
        ]

    def _asked_and_reply(self, messages: Sequence[Message], place: int) -> tuple[str, str]:
        """The text up to the reply at `place`, and the reply with its end of turn."""
        asked = self.text(messages[:place], ask=True)
        written = self.text(messages[: place + 1], ask=False)
        if not written.startswith(asked):
            raise BadDialogue(
                "the chat template asks for a reply in one way and writes it in another"
                f" ({_ending(asked)!r} is not what stands before the reply), so training could not match"
                " inference: give data.chat_template=... or data.template_options=..."
            )
        reply = written.removeprefix(asked).rstrip()  # what follows the end of a turn is never generated
        return asked, reply


def is_file_name(template: str) -> bool:
    return template.endswith((".jinja", ".jinja2"))


def _ending(text: str) -> str:
    return text[-30:]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(f"data.chat_template={file} cannot be read: {error}.") from error
