"""The README of what leaves a run: an adapter, a checkpoint, a prefix file. Each shows how it is used."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from ptlit.build import options_of
from ptlit.data import LabelWords
from ptlit.data.templates import Template
from ptlit.lm import FrozenLM
from ptlit.prompt import SoftPrompt

TEXT = "Landed early, thank you!"
ROWS = {  # of metrics.json, as a reader wants them
    "trained prompt, test": "test/",
    "trained prompt, validation": "val/",
    "untrained LM, same template, test": "baseline/hard_prompt/",
    "always the most frequent class, test": "baseline/majority/",
}
SHAPING = ("prompt", "data", "optim", "schedule", "trainer")
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

A soft prompt of {count} virtual tokens, trained by [ptlit](https://pypi.org/project/ptlit) on {data}. The LM
itself is unchanged.

{metrics}## Use

In this folder, with `pip install peft transformers`:

```python
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".", dtype={dtype}).eval()
tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)
row = tokenizer({text}, return_tensors="pt")
written = model.generate(**row, max_new_tokens={new_tokens}, do_sample=False)
print(tokenizer.decode(written[0, row["input_ids"].shape[1] :], skip_special_tokens=True))
```

ptlit trains it further with `prompt.init.from=<this folder>`.

## Settings

{settings}
"""


def adapter_card(
    lm: FrozenLM,
    prompt: SoftPrompt,
    template: Template | None,
    label_words: LabelWords | None,
    cfg: DictConfig,
    metrics: Mapping[str, float],
) -> str:
    named = f" (labels: {', '.join(label_words.names)})" if label_words else ""
    return ADAPTER.format(
        method=type(prompt).__name__,
        peft_type=prompt.peft_type.lower().replace("_", "-"),
        count=prompt.num_virtual_tokens,
        base_model=lm.name,
        dtype=lm.loaded_dtype,
        data=f"{cfg.data.get('path')}{named}",
        metrics=metrics_table(metrics),
        text=repr(example_text(template)),
        new_tokens=max(map(len, label_words.token_ids)) if label_words else 30,
        settings=table(("setting", "value"), [(key, f"`{value}`") for key, value in settings(cfg)]),
    )


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
        yield place, value


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
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def example_text(template: Template | None) -> str:
    """What a program has to write to be read as in training."""
    if template is None:
        return TEXT
    return "".join(literal + (TEXT if field == "text" else field or "") for literal, field in template.pieces)
