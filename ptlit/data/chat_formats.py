"""The forms in which people keep dialogues, each read into the same list of messages.

A dialogue is an optional system message, then user and assistant in turn.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from ptlit.data.dialogues import Message
from ptlit.data.formats import problem_with_text
from ptlit.data.rows import missing

Format = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]
Record = Mapping[str, object]

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
ROLES |= {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
NOTHING: tuple[object, ...] = (None, "", [], {}, "[]")  # as files write it


class BadDialogue(ValueError):
    """Says what is wrong with a record; file and row are added by who knows them."""


@dataclass(frozen=True)
class ChatFormat:
    columns: tuple[str, ...]  # by which it is recognised
    messages: Callable[[Record], list[Message]]


def read_dialogue(record: Record, kind: Format, system: str | None = None) -> list[Message] | str:
    """The messages, or what is wrong with them. `system` is for dialogues that bring no such message."""
    form = FORMATS[kind]
    for name in form.columns:
        if name not in record:
            return missing(name, list(record))
    try:
        _refuse(record, "tools", "describe them in the system prompt, or leave the column empty")
        messages = form.messages(record)
        own = record.get("system")
        if own not in (None, "") and messages and messages[0]["role"] != "system":
            messages = [_message("system", own, "the system prompt"), *messages]
        return _in_order(messages, system)
    except BadDialogue as problem:
        return str(problem)


def recognised(columns: Collection[str]) -> Format | None:
    return next((name for name, form in FORMATS.items() if set(form.columns) <= set(columns)), None)


def _in_order(messages: list[Message], system: str | None) -> list[Message]:
    if not messages:
        raise BadDialogue("the dialogue is empty")
    has_system = messages[0]["role"] == "system"
    turns = messages[has_system:]
    if not turns:
        raise BadDialogue("the dialogue holds a system prompt and nothing else")
    for i, turn in enumerate(turns):
        number = f"message {i + 1 + has_system}"
        if turn["role"] == "system":
            raise BadDialogue(f"{number} is a system prompt, which can only come first")
        if turn["role"] != ("user", "assistant")[i % 2]:
            if i == 0:
                raise BadDialogue("the assistant speaks first; a dialogue begins with the user")
            raise BadDialogue(f"{number}: {turn['role']} speaks twice in a row")
    if len(turns) == 1:
        raise BadDialogue("the dialogue holds no reply of the assistant, so there is nothing to learn")
    if system and not has_system:
        messages = [Message(role="system", content=system), *messages]
    return messages


def _turns(column: str, role_key: str, content_key: str) -> Callable[[Record], list[Message]]:
    def read(record: Record) -> list[Message]:
        turns = record[column]
        if not isinstance(turns, list):
            raise BadDialogue(f"{column!r} is a {type(turns).__name__}, not a list of messages")
        return [turn_of(turn, i) for i, turn in enumerate(turns, start=1)]

    def turn_of(turn: object, number: int) -> Message:
        if not isinstance(turn, dict):
            raise BadDialogue(
                f"message {number} is a {type(turn).__name__}, not {role_key!r}, {content_key!r}"
            )
        remedy = "write the call as text into its content, or leave the dialogue out"
        for key in ("tool_calls", "function_call"):
            _refuse(turn, key, remedy, of=f"message {number}: ")
        for key in (role_key, content_key):
            if key not in turn:
                raise BadDialogue(f"message {number} has no {key!r}")
        role = turn[role_key]
        if not isinstance(role, str) or role not in ROLES:
            raise BadDialogue(f"message {number} has the role {role!r}, which is none of {', '.join(ROLES)}")
        name = f"message {number} ({role})"
        message = _message(ROLES[role], turn[content_key], name)
        return _weighed(message, turn.get("weight"), name) if message["role"] == "assistant" else message

    return read


def _weighed(reply: Message, weight: object, name: str) -> Message:
    """OpenAI's way to say which replies are learned."""
    if weight is None or weight == 1:
        return reply
    if weight != 0:
        raise BadDialogue(f"{name} has the weight {weight!r}: give 1 for a reply to learn, 0 to only read it")
    return Message(**reply, weight=0)


def _refuse(record: Record, key: str, remedy: str, of: str = "") -> None:
    """What would be lost in silence."""
    if record.get(key) not in NOTHING:
        raise BadDialogue(f"{of}{key!r} is not empty, and ptlit does not read it: {remedy}")


def _alpaca(record: Record) -> list[Message]:
    _refuse(record, "history", "write the whole dialogue as 'messages', or leave the column empty")
    question = _message("user", record["instruction"], "the instruction")
    more = record.get("input")
    if more is not None and more != "":
        question["content"] += "\n" + _message("user", more, "the input")["content"]
    return [question, _message("assistant", record["output"], "the output")]


def _prompt_completion(record: Record) -> list[Message]:
    return [
        _message("user", record["prompt"], "the prompt"),
        _message("assistant", record["completion"], "the completion"),
    ]


def _message(role: str, content: object, name: str) -> Message:
    if not isinstance(content, str):
        raise BadDialogue(
            f"{name} is {'missing' if content is None else f'a {type(content).__name__}'}, not text"
        )
    if problem := problem_with_text(content):
        raise BadDialogue(f"{name} holds {problem}")
    if not content.strip():
        raise BadDialogue(f"{name} is empty")
    return Message(role=role, content=content.strip())


FORMATS: dict[Format, ChatFormat] = {
    "messages": ChatFormat(("messages",), _turns("messages", "role", "content")),
    "sharegpt": ChatFormat(("conversations",), _turns("conversations", "from", "value")),
    "alpaca": ChatFormat(("instruction", "output"), _alpaca),
    "prompt_completion": ChatFormat(("prompt", "completion"), _prompt_completion),
}
