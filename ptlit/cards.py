"""The README of what leaves a run: an adapter, a checkpoint, a prefix file. Each shows how it is used."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ptlit.baked_tokenizer import BakedPrompt
from ptlit.build import options_of
from ptlit.card_texts import (
    ADAPTER,
    ALONE,
    ALONE_IN_PEFT,
    BESIDE_LORA_IN_PEFT,
    CHAT,
    CHECKPOINT,
    IN_SLOTS,
    LLAMA_CPP,
    NEVER_SAID,
    ONE_OF_SEVERAL,
    OWN_HEAD,
    PREFIX,
    SEVERAL,
    USE,
    VLLM,
)
from ptlit.config import AT_THE_ROOT
from ptlit.data import LabelWords
from ptlit.data.templates import Template
from ptlit.ensemble import size_of
from ptlit.front import Front
from ptlit.lm import FrozenLM
from ptlit.prompt import SoftPrompt
from ptlit.prompted_lm import PromptedLM

NEWLINE = "\n"
WITHOUT_BOS = ", add_special_tokens=False"
TEXT = "Landed early, thank you!"
ROWS = {  # of metrics.json, as a reader wants them
    "trained prompt, test": "test/",
    "trained prompt, validation": "val/",
    "untrained LM, same template, test": "baseline/hard_prompt/",
    "always the most frequent class, test": "baseline/majority/",
}
SHAPING = ("lora", "prompt", "data", "optim", "schedule", "loss", "trainer")
COLUMNS = {"accuracy": "accuracy", "macro_f1": "macro F1", "loss": "loss", "perplexity": "perplexity"}


@dataclass(frozen=True)
class Source:
    """A trained prompt and what is known of it. Of an adapter without its run that is little."""

    lm: FrozenLM
    prompted_lm: PromptedLM
    template: Template | None = None
    label_words: LabelWords | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    cfg: DictConfig | None = None


def adapter_card(
    prompt: SoftPrompt,
    front: Front,
    template: Template | None,
    label_words: LabelWords | None,
    cfg: DictConfig,
    metrics: Mapping[str, float],
    lora: str | None = None,
) -> str:
    """`front` is what the prompt stands in, `lora` where the LM's lies, as seen from the card."""
    named = f" (labels: {', '.join(label_words.names)})" if label_words else ""
    return ADAPTER.format(
        method=type(prompt).__name__,
        peft_type=prompt.peft_type.lower().replace("_", "-"),
        count=prompt.num_virtual_tokens,
        base_model=front.lm.name,
        unchanged="is unchanged" if lora is None else f"has a LoRA, in `{lora}`",
        data=f"{unplaced(cfg.data.get('path'))}{named}",
        ensemble=ONE_OF_SEVERAL.format(count=count) if (count := size_of(cfg)) > 1 else "",
        metrics=metrics_table(metrics),
        use=adapter_use(front, template, label_words, lora),
        settings=table(("setting", "value"), [(key, f"`{value}`") for key, value in settings(cfg)]),
    )


def adapter_use(
    front: Front, template: Template | None, label_words: LabelWords | None, lora: str | None
) -> str:
    if template is not None and template.slots:
        return IN_SLOTS.format(template=template.template)
    load = ALONE_IN_PEFT if lora is None else BESIDE_LORA_IN_PEFT
    return USE.format(
        holds_bos=" (the adapter gives BOS too, so a text goes in without it)" if front.leading else "",
        load=load.format(dtype=front.lm.loaded_dtype, lora=lora),
        text=repr(example_text(template)),
        alone=WITHOUT_BOS if front.leading else "",
        new_tokens=answer_length(label_words),
    )


def checkpoint_card(sources: Mapping[str, Source], prompts: Sequence[BakedPrompt], own_head: bool) -> str:
    first = prompts[0]
    source = sources[first.name]
    alone = len(prompts) == 1
    ids = [i for prompt in prompts for i in prompt.ids]
    chatting = [prompt for prompt in prompts if prompt.in_chat]
    bos = bos_of(first)
    return CHECKPOINT.format(
        base_model=source.lm.name,
        count="a soft prompt" if alone else f"{len(prompts)} soft prompts",
        place=" or ".join(dict.fromkeys("behind BOS" if each.place else "before BOS" for each in prompts)),
        prompts=prompts_table(sources, prompts),
        metrics="".join(
            f"{'' if alone else f'{each.name}:{NEWLINE * 2}'}{metrics_table(sources[each.name].metrics)}"
            for each in prompts
        ),
        use=ALONE if alone else SEVERAL.format(bos=f"`{bos}`" if bos else "none here", first=first.name),
        text=repr(("" if alone else first.prefix) + example(source)),
        new_tokens=answer_length(source.label_words),
        chat=chat_words(sources, chatting) if chatting else "It has no chat template.",
        never=OWN_HEAD if own_head else NEVER_SAID.format(first=min(ids), last=max(ids), end=max(ids) + 1),
    )


def llama_cpp_card(sources: Mapping[str, Source], prompts: Sequence[BakedPrompt]) -> str:
    source = sources[prompts[0].name]
    ids = [i for prompt in prompts for i in prompt.ids]
    twice = bos_of(prompts[0]) != ""
    several = ", for the prompt that `chat_template_kwargs` names" if len(prompts) > 1 else ""
    return LLAMA_CPP.format(
        base_model=source.lm.name,
        bos=" --override-kv tokenizer.ggml.add_bos_token=bool:false" if twice else "",
        prompts=prompts_table(sources, prompts),
        kwargs=several,
        first=min(ids),
        last=max(ids),
    )


def prompts_table(sources: Mapping[str, Source], prompts: Sequence[BakedPrompt]) -> str:
    rows = [(each.name or "-", shown_tokens(each), f"`{example(sources[each.name])!r}`") for each in prompts]
    return table(("prompt", "virtual tokens", "reads"), rows)


def bos_of(prompt: BakedPrompt) -> str:
    return prompt.prefix.replace("".join(prompt.tokens), "").strip()


def chat_words(sources: Mapping[str, Source], prompts: Sequence[BakedPrompt]) -> str:
    named = ', `extra_body={"chat_template_kwargs": {"prompt": "' + prompts[-1].name + '"}}`'
    readings = []
    for prompt in prompts:
        which = f"`{prompt.name}`" if prompt.name else "It"
        template = sources[prompt.name].template
        how = (
            "reads one user message, put into the template of its training" if template else "reads any chat"
        )
        readings.append(f"{which} {how}.")
    return CHAT.format(kwargs=named if len(prompts) > 1 else "", readings=" ".join(readings))


def shown_tokens(prompt: BakedPrompt) -> str:
    return f"`{prompt.tokens[0]}` to `{prompt.tokens[-1]}`"


def prefix_card(source: Source) -> str:
    return PREFIX.format(**facts(source))


def vllm_card(source: Source) -> str:
    return VLLM.format(**facts(source) | {"text": shlex.quote(TEXT)})


def facts(source: Source) -> dict[str, Any]:
    front = source.prompted_lm.front
    return {
        "base_model": source.lm.name,
        "held": held(front),
        "length": front.length,
        "alone": WITHOUT_BOS if front.leading else "",
        "goes_in": ", which has BOS: the text goes in without it" if front.leading else "",
        "metrics": metrics_table(source.metrics),
        "dtype": source.lm.loaded_dtype,
        "text": repr(example(source)),
        "new_tokens": answer_length(source.label_words),
    }


def held(front: Front) -> str:
    """What an export gives an LM before the text."""
    virtual = f"{front.virtual} virtual tokens"
    return f"BOS and {virtual} behind it" if front.leading else virtual


def example(source: Source) -> str:
    return example_text(source.template)


def answer_length(label_words: LabelWords | None) -> int:
    return max(map(len, label_words.token_ids)) if label_words else 30


def settings(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """What was set, in full names; of the parts that shape the result."""
    for part in SHAPING:
        yield from flat(part, options_of(cfg[part]) if cfg.get(part) else {})
    for key in AT_THE_ROOT:
        yield from flat(key, cfg.get(key))


def flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from flat(f"{place}.{key}", each)
    elif value is not None:
        yield place, unplaced(value)


def unplaced(value: Any) -> Any:
    """Where data lay on the machine of the training is nobody's business."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def metrics_table(metrics: Mapping[str, float]) -> str:
    """With the columns that these metrics have."""
    columns = [key for key in COLUMNS if any(f"{place}{key}" in metrics for place in ROWS.values())]
    rows = [
        (title, *(f"{metrics[place + key]:.3f}" if place + key in metrics else "" for key in columns))
        for title, place in ROWS.items()
        if any(place + key in metrics for key in columns)
    ]
    return f"{table(('', *(COLUMNS[key] for key in columns)), rows)}\n\n" if rows else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")


def example_text(template: Template | None) -> str:
    """What a program has to write to be read as in training."""
    if template is None:
        return TEXT
    return "".join(
        literal + (TEXT if field == "text" else field or "") for literal, field, _ in template.pieces
    )
