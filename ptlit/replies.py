"""What a prompted LM replies to a dialogue, and how likely it finds replies that were given."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from ptlit.loss import learned_positions
from ptlit.metrics import TextMetrics
from ptlit.prefix import Prefix
from ptlit.prompted_lm import PromptedLM


def generation(
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
    pad_id: int | None,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> GenerationConfig:
    """Greedy at temperature 0. Every setting is said: an LM may bring its own, a repetition penalty say."""
    sampled = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    greedy = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}  # what transformers ignores
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        repetition_penalty=1.0,
        eos_token_id=list(stop_ids) or None,
        stop_strings=list(stop_strings) or None,
        pad_token_id=pad_id if pad_id is not None else next(iter(stop_ids), 0),
        **(sampled if temperature > 0 else greedy),
    )


def reply_ids(
    prompted_lm: PromptedLM,
    read: Sequence[int],
    settings: GenerationConfig,
    prefix: Prefix | None = None,
    streamer: BaseStreamer | None = None,
) -> list[int]:
    """The tokens that follow `read`, the one that ends the reply included."""
    ids = torch.tensor([list(read)], device=prompted_lm.lm.device)  # (1, T)
    options: dict[str, Any] = {"generation_config": settings, "streamer": streamer}
    if settings.stop_strings:
        options["tokenizer"] = prompted_lm.lm.tokenizer
    whole = prompted_lm.generate(ids, torch.ones_like(ids), prefix, **options)
    return whole[0, len(read) :].tolist()


@torch.no_grad()
def perplexity(prompted_lm: PromptedLM, replies: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Of pairs of what is read and what is replied."""
    metrics = TextMetrics().to(prompted_lm.lm.device)
    prefix = prompted_lm.prefix()
    for read, reply in replies:
        ids = torch.tensor([[*read, *reply]], device=prompted_lm.lm.device)  # (1, T)
        labels = ids.clone()
        labels[:, : len(read)] = -100
        keep, targets = learned_positions(labels)
        metrics.update(prompted_lm(ids, torch.ones_like(ids), keep, prefix), targets)
    return float(metrics.compute()["perplexity"])
