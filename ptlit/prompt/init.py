"""Where a prompt starts: noise, sampled words or a text, as embeddings or as their keys and values."""

import torch
from torch import Tensor

from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix
from ptlit.prompt.base import EmbeddingPrompt, SoftPrompt

STARTS = ("text", "vocabulary", "noise")


def start_prompt(prompt: SoftPrompt, lm: FrozenLM, from_: str = "text", text: str | None = None) -> None:
    """Put `prompt` at its start. `noise` leaves it as its constructor made it, which is PEFT's start too."""
    if from_ not in STARTS:
        raise UserMistake(f"prompt.init.from={from_!r} is not a start: choose one of {', '.join(STARTS)}.")
    if from_ == "noise":
        return
    ids = (
        text_ids(lm, text, prompt.num_virtual_tokens)
        if from_ == "text"
        else word_ids(lm, prompt.num_virtual_tokens)
    )
    with torch.no_grad():
        embeddings = lm.embed(ids)  # (P, H)
        if isinstance(prompt, EmbeddingPrompt):
            prompt.start_at(embeddings.float())
        else:
            prompt.start_at(Prefix.from_embeddings(embeddings, lm.model).stacked().float())


def text_ids(lm: FrozenLM, text: str | None, count: int) -> Tensor:
    """The first `count` token ids of the text; of a shorter one copies, of which the last is whole."""
    if not text:
        raise UserMistake(
            "prompt.init.from=text needs a text: give prompt.init.text=... or data.instruction=..."
        )
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    chosen = ids[:count] if len(ids) >= count else (ids * (count // len(ids) + 1))[-count:]
    return torch.tensor(chosen, device=lm.device)


def word_ids(lm: FrozenLM, count: int) -> Tensor:
    """Ids sampled from the vocabulary, special tokens left out."""
    special = set(lm.tokenizer.all_special_ids)
    order = torch.randperm(len(lm.tokenizer)).tolist()
    return torch.tensor([index for index in order if index not in special][:count], device=lm.device)
