"""The layers of a frozen LM by torch.compile, for training steps: what stands between products and attention
is then fused. Both of these stay what they are.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptlit.layers import layers_of
from ptlit.mistake import UserMistake


class CompiledLayers:
    """Made at once, compiled when they are first used; one compilation serves all layers of a kind."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.forwards = [(each, torch.compile(each.forward, dynamic=True)) for each in layers_of(model)]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        check_compiler(self.model.device)
        for layer, forward in self.forwards:
            layer.forward = forward  # type: ignore[method-assign]
        try:
            with two_graphs_a_layer():
                yield
        finally:
            for layer, _ in self.forwards:
                del layer.forward


def two_graphs_a_layer() -> AbstractContextManager[None]:
    """Before attention and after it; otherwise each module around it makes two of its own. Not known to every
    PyTorch.
    """
    config = torch._dynamo.config
    known = hasattr(config, "nested_graph_breaks")
    return config.patch(nested_graph_breaks=True) if known else nullcontext()


@functools.cache
def check_compiler(device: torch.device) -> None:
    """By a use of it: what it needs differs by machine and device."""

    def add_one(number: Tensor) -> Tensor:
        return number + 1

    try:
        torch.compile(add_one)(torch.zeros(2, device=device))
    except Exception as error:  # of the compiler, the linker, Triton ...
        cause = getattr(error, "inner_exception", error)
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise UserMistake(
            f"model.compile=true: torch.compile does not work here ({reason}). It needs a C++ compiler such "
            "as g++, on a GPU Triton too: install what is missing, or give model.compile=false."
        ) from error
