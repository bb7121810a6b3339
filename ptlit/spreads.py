"""How widely an LM's own numbers spread, for a prompt to learn in steps that are as wide.

A learning rate is a step in every coordinate. Embeddings spread by 0.1 in one LM and by 0.9 in another, and
the values that SmolLM2's first layer keeps by a fortieth of what those of its last do: one rate for all of
them is far too little here or too much there. In powers of two, which multiply and divide without rounding.
"""

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptlit.prefix import Prefix

COMMON = 0.1  # of embeddings: learning rates are said for an LM whose words spread so, as SmolLM2's do
WORDS, READ = 4096, 32  # looked at, of the whole vocabulary; read for keys and values
LIMIT = 10  # of the exponents


@torch.no_grad()
def embedding_scale(model: PreTrainedModel) -> float:
    return power_of_two(spread(_words(model, WORDS), dim=0).item() / COMMON)


@torch.no_grad()
def key_value_scales(model: PreTrainedModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the keys and of the values that the layers make of ordinary words. The first word is left out: LMs
    treat it in a way of its own.
    """
    read = Prefix.from_embeddings(_words(model, READ), model).stacked()[:, :, 1:]  # (L, 2, P, K, D)
    keys, values = spread(read, dim=2).T.tolist()  # L each
    return tuple(map(power_of_two, keys)), tuple(map(power_of_two, values))


def spread(numbers: Tensor, dim: int) -> Tensor:
    """The deviation along `dim` and, squared, on average of the dimensions behind it."""
    variances = numbers.float().var(dim, correction=0)
    return variances.flatten(dim).mean(-1).sqrt()


def power_of_two(number: float) -> float:
    """The nearest; 1 of what is not positive, or no number."""
    if not 0 < number < math.inf:
        return 1.0
    return float(2.0 ** min(max(round(math.log2(number)), -LIMIT), LIMIT))


def _words(model: PreTrainedModel, count: int) -> Tensor:
    """Embeddings of so many words at even distances, (count, H)."""
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(count, device=model.device) * size // count
    return model.get_input_embeddings()(ids)  # type: ignore[no-any-return, operator]
