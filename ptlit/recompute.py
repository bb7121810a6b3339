"""Activation checkpointing of a frozen LM: a layer keeps its input alone and runs again in the backward pass.

transformers does this for LMs in training mode and without a cache. A frozen LM is in eval mode, and a prefix
may come as a cache; since ours stores nothing, a layer may run twice all the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ptlit.layers import layers_of
from ptlit.packing import as_now


@contextmanager
def recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the layers of `model` keep no activations (the last one, where it runs for those tokens alone
    that are asked for, keeps theirs); it reads and writes no cache that remembers.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.training = True  # the layer's own flag: what it consists of stays in eval mode
        layer.gradient_checkpointing = True
        layer._can_checkpoint_with_cache = True
        layer._gradient_checkpointing_func = _run  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
            del layer.gradient_checkpointing, layer._can_checkpoint_with_cache
            del layer._gradient_checkpointing_func


def _run(layer_forward: Callable[..., Any], *inputs: Any) -> Any:
    layer: GradientCheckpointingLayer = layer_forward.args[0]  # type: ignore[attr-defined]
    layer.training = False  # some families drop out by this flag
    second_run = as_now()
    return checkpoint(
        layer_forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), second_run)
    )
