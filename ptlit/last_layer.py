"""The last layer of a frozen LM, for those tokens alone that are asked for.

What it makes of all others nobody reads: they owe their keys and values, no more. So it runs twice, over all
tokens until they would attend, and from the start over those that are asked for, which attend to all; the
queries of the first run and the keys and values of the second are made in vain. It takes any layer that keeps
its tokens on the second axis; whether an LM's does is tried on loading.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

KeysAndValues = tuple[Tensor, Tensor]


class _Reached(Exception):
    """All that is wanted has been made."""

    def __init__(self, found: KeysAndValues):
        super().__init__()
        self.found = found


_UNTIL_THEN = object()
_stage: ContextVar[Any] = ContextVar("stage", default=None)


def of_all_tokens(key: Tensor, value: Tensor) -> KeysAndValues:
    """What attention attends to, which was given these, of all tokens or of those that are asked for."""
    stage = _stage.get()
    if stage is _UNTIL_THEN:
        raise _Reached((key, value))
    return stage if stage is not None else (key, value)


@contextmanager
def for_those(tokens: Tensor, layer: nn.Module) -> Iterator[None]:
    """Inside, `layer` makes the hidden states (1, N, H) of these `tokens` (M,) alone; the others are zero."""
    before = vars(layer).get("forward")  # of torch.compile, which would compile both runs anew, or of others
    forward = getattr(layer.forward, "_torchdynamo_orig_callable", layer.forward)

    def narrow(hidden: Tensor, *inputs: Any, **options: Any) -> Any:
        try:
            with _at(_UNTIL_THEN):
                return forward(hidden, *inputs, **options)  # comes back only where nothing attends
        except _Reached as reached:
            found = reached.found  # no more than that is done here: what the first run holds is then free
        some = _of(tokens, hidden.shape[1])
        with _at(found):
            made = forward(some(hidden), *some(inputs), **some(options))
        first = made if isinstance(made, Tensor) else made[0]
        whole = torch.zeros_like(hidden, dtype=first.dtype).index_copy(1, tokens, first)
        return whole if isinstance(made, Tensor) else (whole, *made[1:])

    layer.forward = narrow
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


@contextmanager
def _at(stage: Any) -> Iterator[None]:
    token = _stage.set(stage)
    try:
        yield
    finally:
        _stage.reset(token)


def _of(tokens: Tensor, length: int) -> Any:
    """Whatever has a place for every token, (1, N, ...), with those of `tokens` alone."""

    def some(given: Any) -> Any:
        if isinstance(given, Tensor) and given.shape[:2] == (1, length):
            return given.index_select(1, tokens)
        if isinstance(given, tuple | list):
            return type(given)(map(some, given))
        if isinstance(given, dict):
            return {key: some(each) for key, each in given.items()}
        return given

    return some
