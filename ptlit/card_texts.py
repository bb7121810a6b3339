"""The words of the cards, and the programs in them; `ptlit/cards.py` fills them in."""

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
itself {unchanged}.{ensemble}

{metrics}## Use

{use}

ptlit trains it further with `prompt.init.from=<this folder>`.

## Settings

{settings}
"""

ONE_OF_SEVERAL = """ This is one of {count} prompts of a run, and the
figures are those of all together: the probability of a label is the mean of what they give it."""

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

A cache is used up by writing: make a new one for the next text. Positions count the tokens of the
prefix{goes_in}.
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
