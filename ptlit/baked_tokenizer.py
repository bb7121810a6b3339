"""The tokenizer of a baked checkpoint: P added tokens for each prompt, put behind BOS, or before it.

One prompt is put before every text by the tokenizer itself. Of several none is: a text then begins with the
prefix of the prompt it is for, and a chat names it (`prompt=...`, the first unless said).
"""

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import TemplateError
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ptlit.data.example import Example, Segment, encode, leading_tokens, token_ids
from ptlit.data.templates import Template
from ptlit.mistake import UserMistake
from ptlit.older_readers import GENERAL_CLASS

SAMPLES = ("Hello there, how are you?", "1 word:  two\nthree\n")  # what the finished tokenizer is tried on
NO_LIMIT = 1 << 30
T = TypeVar("T")


@dataclass(frozen=True)
class BakedPrompt:
    """How the finished checkpoint is told to read with this prompt."""

    name: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    place: int  # how many of the tokenizer's own tokens stand before them
    prefix: str  # what goes before a text, BOS included
    in_every_text: bool  # the tokenizer writes the prefix by itself
    in_chat: bool  # the chat template writes it


def bake_tokenizer(
    original: PreTrainedTokenizerBase,
    lengths: Mapping[str, int],
    templates: Mapping[str, Template | None],
    folder: Path,
    for_llama_cpp: bool = False,
    behind_bos: Collection[str] = (),
) -> list[BakedPrompt]:
    """Save the new tokenizer, load it again, and hold it against what ptlit reads with the old one."""
    if not isinstance(original, PreTrainedTokenizerFast):
        raise UserMistake(
            "Baking needs a fast tokenizer (tokenizer.json), which this LM lacks: use format=kv."
        )
    tokenizer = copy.deepcopy(original)
    bos = leading_words(original)
    tokens = {name: virtual_words(name, length) for name, length in lengths.items()}
    ids = add_tokens(tokenizer, tokens)
    places = {name: len(bos) if name in behind_bos else 0 for name in tokens}
    heads = {name: placed(tokens[name], bos, place) for name, place in places.items()}
    alone = len(heads) == 1 and not for_llama_cpp
    if not for_llama_cpp:
        put_before_texts(tokenizer, next(iter(heads.values())) if alone else [])
    prefixes = {name: "".join(head) + space(tokenizer, original, head) for name, head in heads.items()}
    bodies = chat_bodies(original, tokens, prefixes, templates, behind_bos)
    finished_templates = {key: chosen(each) for key, each in bodies.items() if each}
    only_default = list(finished_templates) == ["default"]
    tokenizer.chat_template = finished_templates["default"] if only_default else finished_templates or None
    tokenizer.save_pretrained(folder)
    if not for_llama_cpp:
        forget_family(folder, original)

    finished = AutoTokenizer.from_pretrained(folder)
    for name in heads:
        virtual = (ids[name], places[name])
        hold_to_texts(finished, original, None if alone else prefixes[name], *virtual)
        if name in bodies["default"]:
            hold_to_chats(finished, original, name, *virtual, templates[name])
    return [
        BakedPrompt(
            name=name,
            tokens=tuple(tokens[name]),
            ids=tuple(ids[name]),
            place=places[name],
            prefix=prefixes[name],
            in_every_text=alone,
            in_chat=name in bodies["default"],
        )
        for name in heads
    ]


def placed(virtual: Sequence[T], words: Sequence[T], place: int) -> list[T]:
    """The virtual tokens among the words, behind the first `place` of them."""
    return [*words[:place], *virtual, *words[place:]]


def virtual_words(name: str, length: int) -> list[str]:
    return [f"<ptlit_{name}_{i}>" if name else f"<ptlit_{i}>" for i in range(length)]


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Mapping[str, Sequence[str]]
) -> dict[str, list[int]]:
    taken = tokenizer.get_vocab()
    new = [token for each in tokens.values() for token in each]
    if known := [token for token in new if token in taken]:
        raise UserMistake(
            f"This LM has a token {known[0]} already, from an earlier baking: give the prompt a name of its "
            "own, as run={second: <run folder>}."
        )
    tokenizer.add_tokens(
        [AddedToken(each, special=True, normalized=False) for each in new], special_tokens=True
    )
    known_as = tokenizer.get_vocab()
    ids = {name: [known_as[token] for token in each] for name, each in tokens.items()}
    if set(taken.values()) & {i for each in ids.values() for i in each}:
        raise UserMistake(
            "This tokenizer leaves gaps between its ids, so it takes no new tokens: use format=kv."
        )
    return ids


def put_before_texts(tokenizer: PreTrainedTokenizerFast, head: Sequence[str]) -> None:
    """In place of what the tokenizer itself put around a text: ptlit reads no more than what leads it."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*head, "$A"],
        pair=[*head, "$A", "$B"],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys(head)],
    )


def space(tokenizer: PreTrainedTokenizerBase, original: PreTrainedTokenizerBase, head: Sequence[str]) -> str:
    """What has to stand between the prefix and a text, so that the text begins as it does alone.

    Some tokenizers begin a text, and nothing else, with a space of their own.
    """
    for between in ("", " "):
        written = [f"{''.join(head)}{between}{sample}" for sample in SAMPLES]
        alone = token_ids(SAMPLES, original)
        if [ids[len(head) :] for ids in token_ids(written, tokenizer)] == alone:
            return between
    raise UserMistake("This tokenizer reads a text otherwise when other tokens precede it: use format=kv.")


# The chat template. All that is added is wrapped in {{- -}}, which eats white space on both sides.


def chat_bodies(
    original: PreTrainedTokenizerBase,
    tokens: Mapping[str, Sequence[str]],
    prefixes: Mapping[str, str],
    templates: Mapping[str, Template | None],
    behind_bos: Collection[str],
) -> dict[str, dict[str, str]]:
    """For each chat template of the LM, by its name: what it is with each prompt that can chat."""
    own = (original.chat_template or {}) if can_chat(original) else {}
    own = {"default": own} if isinstance(own, str) else dict(own)
    bodies: dict[str, dict[str, str]] = {key: {} for key in ("default", *own)}
    for key, each in bodies.items():
        for name, template in templates.items():
            if template is not None:
                if all(field.isidentifier() for field in template.fields):
                    each[name] = template_body(template, prefixes[name])
            elif key in own:
                if not begins_with_bos(original):
                    each[name] = f"{written(prefixes[name])}{own[key]}"
                elif name in behind_bos:
                    first = "".join(leading_words(original))
                    each[name] = put_behind(first, "".join(tokens[name]), own[key])
                else:
                    each[name] = f"{written(''.join(tokens[name]))}{own[key]}"
    return bodies


def can_chat(original: PreTrainedTokenizerBase) -> bool:
    """Whether it has a template that takes a user's message, and needs nothing more."""
    try:
        return bool(rendered(original, SAMPLES[0]))
    except (TemplateError, ValueError):
        return False


def begins_with_bos(original: PreTrainedTokenizerBase) -> bool:
    """Most chat templates write what the tokenizer puts before a text; where one does not, ptlit adds it."""
    leading = leading_tokens(original)
    return token_ids([rendered(original, SAMPLES[0])], original)[0][: len(leading)] == leading


def leading_words(original: PreTrainedTokenizerBase) -> list[str]:
    return [str(token) for token in original.convert_ids_to_tokens(leading_tokens(original))]


def put_behind(first: str, virtual: str, template: str) -> str:
    """A chat template that writes `first` before all else, with the virtual tokens behind that."""
    whole = f"{{%- set ptlit_chat -%}}{template.removesuffix(chr(10))}{{% endset -%}}"
    return f"{whole}{written(first + virtual)}{{{{- ptlit_chat[{len(first)}:] -}}}}"


def template_body(template: Template, prefix: str) -> str:
    """One message, read through the template that the prompt was trained with."""
    one = "This prompt reads one user message, put into the template it was trained with."
    parts = [f"{{%- if messages | length != 1 -%}}{{{{- raise_exception({literal(one)}) -}}}}{{%- endif -%}}"]
    parts.append(written(prefix))
    for text, field, _ in template.pieces:
        parts.append(written(text) if text else "")
        if field == "text":
            parts.append("{{- messages[0]['content'] | trim -}}")
        elif field is not None:
            lacking = f"This prompt needs {field}=... beside the message."
            parts.append(
                f"{{%- if {field} is not defined -%}}{{{{- raise_exception({literal(lacking)}) -}}}}"
            )
            parts.append(f"{{%- endif -%}}{{{{- {field} -}}}}")
    return "".join(parts)


def chosen(bodies: Mapping[str, str]) -> str:
    """The body of the prompt that the caller names; the first unless one is named."""
    names = list(bodies)
    if len(names) == 1:
        return bodies[names[0]]
    unknown = f"There is no such prompt: choose from {', '.join(names)}."
    branches = [
        f"{{% {'elif' if index else 'if'} ptlit_prompt == {literal(name)} -%}}{body.removesuffix(chr(10))}"
        for index, (name, body) in enumerate(bodies.items())
    ]
    start = f"{{%- set ptlit_prompt = prompt | default({literal(names[0])}) -%}}"
    end = f"{{% else -%}}{{{{- raise_exception({literal(unknown)}) -}}}}{{%- endif -%}}"
    return "".join([start, *branches, end])


def written(text: str) -> str:
    return f"{{{{- {literal(text)} -}}}}"


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def rendered(tokenizer: PreTrainedTokenizerBase, message: str, **named: Any) -> str:
    chat = [{"role": "user", "content": message}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **named))


def forget_family(folder: Path, original: PreTrainedTokenizerBase) -> None:
    """A family's own class would write its own tokens before a text again."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("add_bos_token", "add_eos_token"):
        config.pop(key, None)
    config["tokenizer_class"] = GENERAL_CLASS
    config["model_input_names"] = original.model_input_names
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def hold_to_texts(
    finished: PreTrainedTokenizerBase,
    original: PreTrainedTokenizerBase,
    prefix: str | None,
    ids: Sequence[int],
    place: int,
) -> None:
    """Without a `prefix` the tokenizer is to write it."""
    for sample in SAMPLES:
        alone = encode(Example((Segment(sample),)), original, NO_LIMIT)["input_ids"]
        wanted = placed(ids, alone, place)
        text = sample if prefix is None else prefix + sample
        read = finished(text, add_special_tokens=prefix is None)["input_ids"]
        hold(read, wanted, f"the text {sample!r}")


def hold_to_chats(
    finished: PreTrainedTokenizerBase,
    original: PreTrainedTokenizerBase,
    name: str,
    ids: Sequence[int],
    place: int,
    template: Template | None,
) -> None:
    for sample in SAMPLES:
        if template is None:
            example, fields = Example((Segment(rendered(original, sample)),)), {}
        else:
            fields = {field: "three" for field in template.fields if field != "text"}
            example = template.example(sample, fields)
        wanted = placed(ids, encode(example, original, NO_LIMIT)["input_ids"], place)
        text = rendered(finished, sample, **fields, **({"prompt": name} if name else {}))
        hold(
            finished(text, add_special_tokens=False)["input_ids"],
            wanted,
            f"a chat that begins with {sample!r}",
        )


def hold(read: Sequence[int], wanted: Sequence[int], what: str) -> None:
    if list(read) != list(wanted):
        raise UserMistake(
            f"The baked tokenizer does not read {what} as ptlit does ({list(read)[:40]} and not "
            f"{list(wanted)[:40]}): use format=kv."
        )
