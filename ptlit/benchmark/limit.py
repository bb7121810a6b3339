"""How fast this machine could be: the operations a step cannot do without, over the rate of matrix products.

Counted as necessary (two operations for a product and its sum):

- in the linear layers of the LM's body, forward and the gradient of activations, for each real token, and for
  the virtual tokens of an input prompt once a step, whatever the batch; frozen weights need no gradient;
- in attention, the products of queries and keys and of weights and values for each pair of a token and itself
  or an earlier one, virtual or real; backward is twice forward, as both factors have a gradient;
- in the LM's head, forward and backward at supervised positions only;
- in the prompt's own layers, forward and both gradients, for each virtual token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ptlit.benchmark.clock import spent
from ptlit.benchmark.engines import Rows
from ptlit.lm import FrozenLM
from ptlit.products import available, product
from ptlit.prompt import EmbeddingPrompt, SoftPrompt

SHAPES = {  # (rows, from, to) of a linear layer
    "cpu": ((512, 1024, 1024), (512, 2048, 2048), (2048, 2048, 2048)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192)),
}
LONG_ENOUGH = 0.1  # seconds: Linux books the time of a thread that still runs only now and then
Linear = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rates:
    """Operations a second: by the fastest library at hand, and by PyTorch as everybody calls it."""

    per_second: float
    per_cpu_second: float
    pytorch_per_second: float
    pytorch_per_cpu_second: float


def necessary_operations(lm: FrozenLM, prompt: SoftPrompt, rows: Rows) -> float:
    lengths = [len(row["input_ids"]) for row in rows]
    supervised = sum(label != -100 for row in rows for label in row["labels"][1:])
    virtual = prompt.num_virtual_tokens
    runs_through_lm = isinstance(prompt, EmbeddingPrompt)
    tokens = sum(lengths) + virtual * runs_through_lm
    pairs = sum(length * virtual + _triangle(length) for length in lengths)
    pairs += _triangle(virtual) * runs_through_lm
    learned = sum(p.numel() for name, p in prompt.named_parameters() if not name.startswith("embedding."))
    return (
        4 * linear_weights(lm.model) * tokens
        + 3 * 4 * attention_width(lm.model) * pairs
        + 4 * head_weights(lm.model) * supervised
        + 6 * learned * virtual
    )


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def linear_weights(model: PreTrainedModel) -> int:
    """Of the body, the head left out."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    return sum(layer.weight.numel() for layer in layers if layer is not model.get_output_embeddings())


def head_weights(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head.weight.numel()


def attention_width(model: PreTrainedModel) -> int:
    """Width of all heads of all layers: one pair of tokens costs four operations for each."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers * config.num_attention_heads * width


class MatrixProducts:
    """Lives in a worker of its own and takes its turn with the engines, so that all meet the same machine."""

    def __init__(self, dtype: str, device: str):
        self.device = torch.device(device)
        kind = {"dtype": getattr(torch, dtype), "device": self.device}
        self.factors = [
            (torch.rand(rows, width, **kind), torch.rand(to, width, **kind))
            for rows, width, to in SHAPES[self.device.type]
        ]
        quick = self.device.type == "cpu" and dtype == "float32" and available()
        self.libraries = [nn.functional.linear, product] if quick else [nn.functional.linear]
        self.rates()

    def rates(self) -> Rates:
        found = [self._best_of_shapes(linear) for linear in self.libraries]
        by_clock, by_cpu = zip(*found, strict=True)
        return Rates(max(by_clock), max(by_cpu), by_clock[0], by_cpu[0])

    def _best_of_shapes(self, linear: Linear) -> tuple[float, float]:
        each = [self._rates(linear, inputs, weight) for inputs, weight in self.factors]
        by_clock, by_cpu = zip(*each, strict=True)
        return max(by_clock), max(by_cpu)

    def _rates(self, linear: Linear, inputs: Tensor, weight: Tensor) -> tuple[float, float]:
        once = spent(lambda: linear(inputs, weight), self.device)
        times = max(1, math.ceil(LONG_ENOUGH / once.seconds))
        operations = 2.0 * inputs.shape[0] * weight.numel() * times

        def often() -> None:
            for _ in range(times):
                linear(inputs, weight)

        found = [spent(often, self.device) for _ in range(3)]
        return (
            operations / median(each.seconds for each in found),
            operations / median(each.cpu_seconds for each in found),
        )
