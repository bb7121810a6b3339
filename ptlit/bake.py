"""Baking: a soft prompt of the input kind becomes words of an ordinary checkpoint.

Its P embeddings are P new rows of the vocabulary, and P tokens that tokenizer and chat template put behind
BOS, or before it, where ptlit has them. Programs that know nothing of soft prompts then compute what ptlit
computes. Keys and values of the deep kind are no words: they are refused.
"""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptlit.baked_tokenizer import SAMPLES, BakedPrompt, bake_tokenizer
from ptlit.bundled_lm import forget_gguf
from ptlit.data.example import Example, Segment, encode
from ptlit.data.templates import Template
from ptlit.lm import FrozenLM
from ptlit.lora import merge, tuned_weights
from ptlit.mistake import UserMistake
from ptlit.older_readers import write_in_older_words
from ptlit.products import plainly
from ptlit.prompt import EmbeddingPrompt, SoftPrompt

PROMPTS_FILE = "ptlit_prompts.json"  # in the checkpoint: what was baked, and how to ask for it
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of as many bytes as a float


@dataclass(frozen=True)
class Ingredient:
    """A prompt to bake. With a `template` chat messages are read through it, as the prompt was trained."""

    prompt: SoftPrompt
    template: Template | None = None
    after_bos: bool = False  # where its virtual tokens stand


@dataclass(frozen=True)
class Baked:
    prompts: list[BakedPrompt]
    difference: float  # from the prompted LM's logits, as a share of the largest; 0 is equal to the last bit


@torch.no_grad()
def bake(
    lm: FrozenLM,
    ingredients: Mapping[str, Ingredient],
    folder: Path,
    for_llama_cpp: bool = False,
    own_head: bool = False,
) -> Baked:
    """Write the checkpoint into `folder`; `lm` itself stays as it is. A single prompt may be called "".

    llama.cpp's converter wants to see the tokenizer that it knows: that one puts nothing new before a text.
    A head of its own cannot write virtual tokens; one that is the embeddings' twin has to be told each time.
    """
    model = unquantised_copy(lm)
    if own_head:
        untie(model)
    embeddings = {name: virtual_embeddings(name, each.prompt, lm) for name, each in ingredients.items()}
    lengths = {name: len(each) for name, each in embeddings.items()}
    templates = {name: each.template for name, each in ingredients.items()}
    behind = {name for name, each in ingredients.items() if each.after_bos}
    prompts = bake_tokenizer(lm.tokenizer, lengths, templates, folder, for_llama_cpp, behind)
    add_rows(model, {prompt.ids: embeddings[prompt.name] for prompt in prompts}, len(lm.tokenizer))
    with plainly(lm.model, model):
        difference = max(logit_difference(lm, model, prompt, embeddings[prompt.name]) for prompt in prompts)
    allow_difference(difference, lm.dtype)
    never_say(model, [i for prompt in prompts for i in prompt.ids])
    try:
        model.save_pretrained(folder)
    except ValueError as error:  # a generation config that transformers reads but does not write
        raise UserMistake(f"This LM cannot be saved: {' '.join(str(error).split())}") from error
    write_in_older_words(folder)
    write_prompts(folder / PROMPTS_FILE, prompts, templates)
    return Baked(prompts, difference)


@torch.no_grad()
def virtual_embeddings(name: str, prompt: SoftPrompt, lm: FrozenLM) -> Tensor:
    """(P, H), without dropout, as the LM is given them."""
    if not isinstance(prompt, EmbeddingPrompt):
        which = f" {name}" if name else ""
        raise UserMistake(
            f"The prompt{which} holds keys and values of every layer, which no word of a vocabulary can "
            "give: use format=kv for a prefix file, or format=peft."
        )
    training = prompt.training
    embeddings = prompt.eval()().to(lm.dtype)
    prompt.train(training)
    return embeddings


def unquantised_copy(lm: FrozenLM) -> PreTrainedModel:
    """A model that shares all weights but those of the vocabulary, which are its own, and those that a LoRA
    has gone into.
    """
    model = lm.model
    quantised = model.config.to_dict().get("quantization_config") or {}
    is_gguf = quantised.get("quant_method") == "gguf"
    if quantised and not is_gguf:
        raise UserMistake(
            "This LM is quantised, and an ordinary checkpoint is not: use format=kv, or format=peft."
        )
    own = {id(each) for part in vocabulary_parts(model) for each in part.parameters()}
    if lm.has_lora:
        own |= {id(each) for each in tuned_weights(model)}
    shared = [each for each in [*model.parameters(), *model.buffers()] if id(each) not in own]
    copied = copy.deepcopy(model, {id(each): each for each in shared})
    if is_gguf:
        forget_gguf(copied)
    if lm.has_lora:
        merge(copied)
    return copied


def vocabulary_parts(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    return cast(nn.Embedding, model.get_input_embeddings()), cast(nn.Linear, model.get_output_embeddings())


def untie(model: PreTrainedModel) -> None:
    embedding, head = vocabulary_parts(model)
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def add_rows(model: PreTrainedModel, rows: Mapping[tuple[int, ...], Tensor], known: int) -> None:
    """`rows` at their ids; a head of its own is given the mean of the `known` tokens' rows there.

    The mean's logit is the mean of the others: however a program decodes, it never is the highest.
    """
    ids = [i for each in rows for i in each]
    if max(ids) >= vocabulary_parts(model)[0].num_embeddings:  # else there is room in the padding
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    embedding, head = vocabulary_parts(model)
    for each, wanted in rows.items():
        place_rows(embedding, torch.tensor(each, device=embedding.weight.device), wanted)
    if head.weight is not embedding.weight:
        head.weight[ids] = head.weight[:known].float().mean(0).to(head.weight.dtype)
    if head.bias is not None:
        head.bias[ids] = head.bias[:known].float().mean().to(head.bias.dtype)


def place_rows(embedding: nn.Embedding, ids: Tensor, wanted: Tensor) -> None:
    """Write what the LM's own look-up turns into `wanted`: Gemma's multiplies by a scale, so divide first.

    A product is rounded, so of the quotient and its two neighbours the one that comes nearest is taken.
    """
    embedding.weight[ids] = wanted
    ratio = (embedding(ids) / wanted).float()
    scale = ratio[ratio.isfinite()].median().item()
    if torch.equal(embedding(ids), wanted) or math.isnan(scale) or scale == 0:
        return
    quotient = (wanted.double() / scale).to(wanted.dtype)
    kind = INTEGERS[quotient.element_size()]
    best, missing = quotient, torch.full_like(wanted, torch.inf, dtype=torch.float64)
    for step in (0, -1, 1):
        tried = (quotient.view(kind) + step).view(quotient.dtype)
        embedding.weight[ids] = tried
        distance = (embedding(ids).double() - wanted.double()).abs()
        best = torch.where(distance < missing, tried, best)
        missing = torch.minimum(distance, missing)
    embedding.weight[ids] = best


def logit_difference(lm: FrozenLM, baked: PreTrainedModel, prompt: BakedPrompt, embeddings: Tensor) -> float:
    """Over the old vocabulary, on a sample text."""
    text = encode(Example((Segment(SAMPLES[0]),)), lm.tokenizer, 1 << 30)["input_ids"]
    before, after = torch.tensor([text], device=lm.device).tensor_split([prompt.place], dim=1)
    words = [lm.embed(before), embeddings[None], lm.embed(after)]
    plain = lm.model(inputs_embeds=torch.cat(words, dim=1), use_cache=False).logits
    virtual = torch.tensor([prompt.ids], device=lm.device)
    answers = baked(input_ids=torch.cat([before, virtual, after], dim=1), use_cache=False).logits
    known = len(lm.tokenizer)
    difference = (answers[..., :known] - plain[..., :known]).abs().max() / plain[..., :known].abs().max()
    return float(difference)


def allow_difference(difference: float, dtype: torch.dtype) -> None:
    allowed = 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2
    if not difference <= allowed:
        raise UserMistake(
            f"The baked LM does not answer as the prompted one (logits differ by {difference:.1%}), because "
            "this LM does more with a token's id than look up its embedding: use format=kv."
        )


def never_say(model: PreTrainedModel, ids: list[int]) -> None:
    """Virtual tokens are read, never written."""
    generation = model.generation_config
    assert generation is not None
    generation.suppress_tokens = sorted({*(generation.suppress_tokens or []), *ids})


def write_prompts(path: Path, prompts: list[BakedPrompt], templates: Mapping[str, Template | None]) -> None:
    listed = []
    for prompt in prompts:
        template = templates[prompt.name]
        listed.append({**asdict(prompt), "template": template.template if template else None})
    path.write_text(json.dumps(listed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
