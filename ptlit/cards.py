"""The README of what leaves a run: an adapter, a checkpoint, a prefix file. Each shows how it is used."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ptlit.baked_tokenizer import BakedPrompt
from ptlit.build import options_of
from ptlit.data import LabelWords
from ptlit.data.templates import Template
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
SHAPING = ("lora", "prompt", "data", "optim", "schedule", "trainer")
COLUMNS = {"accuracy": "accuracy", "macro_f1": "macro F1", "loss": "loss", "perplexity": "perplexity"}

ADAPTER = """\
---
base_model: {base_model}
library_name: peft
pipeline_tag: text-generation
tags:
- soft-prompt
- {peft_type}
---

# {method} for {base_model}

A soft prompt of {count} virtual tokens, trained by ptlit on {data}. The LM
itself {unchanged}.

{metrics}## Use

{use}

ptlit trains it further with `prompt.init.from=<this folder>`.

## Settings

{settings}
"""

USE = """\
In this folder, with `pip install peft transformers`{holds_bos}:

```python
{load}
row = tokenizer({text}{alone}, return_tensors="pt")
written = model.generate(**row, max_new_tokens={new_tokens}, do_sample=False)
print(tokenizer.decode(written[0, row["input_ids"].shape[1] :], skip_special_tokens=True))
```"""

IN_SLOTS = """\
It was trained with its virtual tokens inside the template `{template!r}`. PEFT loads it, but puts them before
the text, where it was not trained to stand; `ptlit.evaluate` and `ptlit.predict` put them in their places."""

ALONE_IN_PEFT = """\
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".", dtype={dtype}).eval()
tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)"""

BESIDE_LORA_IN_PEFT = """\
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

name = PeftConfig.from_pretrained(".").base_model_name_or_path
model = AutoModelForCausalLM.from_pretrained(name, dtype={dtype})
model = PeftModel.from_pretrained(model, "{lora}").merge_and_unload()  # PEFT has no other way for both
model = PeftModel.from_pretrained(model, ".").eval()
tokenizer = AutoTokenizer.from_pretrained(name)"""

CHECKPOINT = """\
---
base_model: {base_model}
library_name: transformers
pipeline_tag: text-generation
---

# {base_model} with soft prompts among its words

An ordinary checkpoint, written by ptlit. The virtual tokens of {count} are
words of its vocabulary; they belong at the front of what it reads, {place}.

{prompts}

{metrics}## Use

{use}

```python
from transformers import pipeline

write = pipeline("text-generation", model=".")  # in this folder
answer = write({text}, max_new_tokens={new_tokens}, do_sample=False, return_full_text=False)
print(answer[0]["generated_text"])
```

Served by `transformers serve "$PWD"` (`pip install "transformers[serving]"`), asked by any OpenAI client:

```python
import os
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
answer = client.completions.create(model=os.getcwd(), prompt={text}, max_tokens={new_tokens}, temperature=0)
print(answer.choices[0].text)
```

{chat}

Virtual tokens are read, never written: {never}
"""

LLAMA_CPP = """\
---
base_model: {base_model}
---

# {base_model} with soft prompts among its words, to be converted for llama.cpp

Written by ptlit. Virtual tokens are words of its vocabulary. With the
converter of llama.cpp:

```sh
python convert_hf_to_gguf.py . --outtype f16 --outfile ../prompted.gguf
llama-server --model ../prompted.gguf --jinja{bos}
```

{prompts}

The chat template puts the virtual tokens in place{kwargs}. A plain text has to begin with the prefix that
`ptlit_prompts.json` has. Virtual tokens are read, never written: the head is apart from the embeddings and
gives them the mean of all other tokens. Where llama.cpp knows no such head for an architecture (Gemma), each
request says so: `"logit_bias": [[id, false], ...]` for the ids {first} to {last}.
"""

NEVER_SAID = """\
`generation_config.json` suppresses them (ids {first} to {last}). A
server that ignores it, such as vLLM, is told so by each request:
`logit_bias={{str(i): -100 for i in range({first}, {end})}}`, or is given an export with `own_head=true`."""

OWN_HEAD = """\
the head, which is apart from the embeddings, gives them the mean of all
other tokens, which never is the highest."""

ALONE = """\
The tokenizer writes the virtual tokens before every text by itself (`add_special_tokens`), the chat template
before every chat."""

SEVERAL = """\
The tokenizer writes nothing by itself: begin a text with the prefix of the prompt that it is for, as
`ptlit_prompts.json` has it, BOS included. Without one the LM reads as it was, and needs its own BOS ({bos}).
A chat names its prompt; unless it does, it is read by `{first}`."""

CHAT = """\
Chats too: `client.chat.completions.create(...)`{kwargs}. {readings}"""

PREFIX = """\
---
base_model: {base_model}
---

# A prefix for {base_model}

`prefix.safetensors` holds the keys and values of {held} for every layer: `keys.0`,
`values.0` and so on, each of the axes (1, key/value heads, tokens, size of a head). Written by
ptlit.

{metrics}## Use

With ptlit, `load_cache(folder, lm)` of `ptlit.prefix_file`; without it, in this folder:

```python
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

model = AutoModelForCausalLM.from_pretrained({base_model!r}, dtype={dtype}).eval()
tokenizer = AutoTokenizer.from_pretrained({base_model!r})
prefix = load_file("prefix.safetensors")
cache = DynamicCache(config=model.config)
for layer in range(len(prefix) // 2):
    cache.update(prefix[f"keys.{{layer}}"], prefix[f"values.{{layer}}"], layer)

row = tokenizer({text}{alone}, return_tensors="pt")
seen = torch.ones(1, {length} + row["input_ids"].shape[1], dtype=torch.long)
written = model.generate(
    row["input_ids"], attention_mask=seen, past_key_values=cache, max_new_tokens={new_tokens}, do_sample=False
)
print(tokenizer.decode(written[0, row["input_ids"].shape[1] :], skip_special_tokens=True))
```

A cache is used up by writing: make a new one for the next text. Positions count the tokens of the prefix.
"""

VLLM = """\
---
base_model: {base_model}
---

# A soft prompt for {base_model}, by way of vLLM's prompt embeddings

`prompt.safetensors` holds the embeddings of {held}. Written by
ptlit.

The recommended way to serve a prompt is `python -m ptlit.export format=checkpoint`: that checkpoint needs no
client of its own, and no option of the server. This folder is for a server that is to keep the LM as it is:

```sh
vllm serve {base_model} --enable-prompt-embeds
python client.py {text}
```

`client.py` looks up the text's embeddings, puts the prompt before them and sends both. It needs torch,
transformers and safetensors. Its embeddings were tested against those of ptlit, but not on a live vLLM.
"""


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
    virtual = f"{front.virtual} virtual tokens"
    return {
        "base_model": source.lm.name,
        "held": f"BOS and {virtual} behind it" if front.leading else virtual,
        "length": front.length,
        "alone": WITHOUT_BOS if front.leading else "",
        "metrics": metrics_table(source.metrics),
        "dtype": source.lm.loaded_dtype,
        "text": repr(example(source)),
        "new_tokens": answer_length(source.label_words),
    }


def example(source: Source) -> str:
    return example_text(source.template)


def answer_length(label_words: LabelWords | None) -> int:
    return max(map(len, label_words.token_ids)) if label_words else 30


def settings(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """What was set, in full names; of the parts that shape the result."""
    for part in SHAPING:
        yield from flat(part, options_of(cfg[part]) if cfg.get(part) else {})
    yield "seed", cfg.get("seed")


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
