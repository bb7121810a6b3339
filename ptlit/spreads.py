"""How widely an LM's own numbers spread, for a prompt to learn in steps that are as wide.

A learning rate is a step in every coordinate. Gemma 3's embeddings spread eight times as widely as SmolLM2's,
and the values that SmolLM2's first layer keeps by a thirty-second of those of its last: one rate for all of
them is far too little here or too much there. In powers of two, which multiply and divide without rounding.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

COMMON = 0.1  # of embeddings: learning rates are said for an LM whose words spread so, as SmolLM2's do
WORDS = 4096  # looked at, of the whole vocabulary
ROWS, LONG = 32, 8  # of words, read for keys and values
LIMIT = 10  # of the exponents


@torch.no_grad()
def embedding_scale(model: PreTrainedModel) -> float:
    return power_of_two(spread(_words(model, WORDS)) / COMMON)


@torch.no_grad()
def key_value_scales(model: PreTrainedModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the keys and of the values that the layers make of a word: the last of each row, for keys are turned
    by their position, and a first word LMs treat in a way of its own.
    """
    rows = _words(model, ROWS * LONG).unflatten(0, (LONG, ROWS)).transpose(0, 1)  # (B, T, H)
    cache = DynamicCache()
    model.base_model(inputs_embeds=rows, past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    keys = [spread(layer.keys[:, :, -1]) for layer in layers]  # of (B, K, D)
    values = [spread(layer.values[:, :, -1]) for layer in layers]
    return tuple(map(power_of_two, keys)), tuple(map(power_of_two, values))


def spread(numbers: Tensor) -> float:
    """How far the words, (B, ...), lie from their mean: the root of the mean square of all coordinates."""
    return numbers.float().var(0, correction=0).mean().sqrt().item()


def power_of_two(number: float) -> float:
    """The nearest; 1 of what is not positive, or no number."""
    if not 0 < number < math.inf:
        return 1.0
    return float(2.0 ** min(max(round(math.log2(number)), -LIMIT), LIMIT))


def _words(model: PreTrainedModel, count: int) -> Tensor:
    """Embeddings of so many words at even distances, (count, H)."""
    table = cast(nn.Embedding, model.get_input_embeddings())
    ids = torch.arange(count, device=model.device) * table.num_embeddings // count
    return table(ids)  # type: ignore[no-any-return]
