"""The one object between the learned and the frozen: keys and values that every later token attends to.

The only file that touches the cache API of transformers, because most breakage comes from there. Axes: see
the legend in `ptlit/prompt/base.py`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True)
class Prefix:
    """Keys and values of P virtual positions, one (K, P, D) pair a layer, without a batch axis."""

    keys: tuple[Tensor, ...]  # L of (K, P, D)
    values: tuple[Tensor, ...]  # L of (K, P, D)

    @classmethod
    def from_key_values(cls, key_values: Tensor) -> "Prefix":
        """From what a deep prompt emits: (L, 2, P, K, D)."""
        layers = key_values.transpose(2, 3)  # (L, 2, K, P, D)
        return cls(tuple(layers[:, 0].unbind(0)), tuple(layers[:, 1].unbind(0)))

    @classmethod
    def from_embeddings(
        cls, embeddings: Tensor, model: PreTrainedModel, behind: "Prefix | None" = None
    ) -> "Prefix":
        """From what an input prompt emits, or words, (P, H): the LM runs over them once, at batch size 1.

        They come first and the LM is causal, so nothing in any row can change the outcome. What they stand
        `behind` becomes part of it.
        """
        # without a config the cache keeps all P, beyond a sliding window too: the mask knows it
        cache = DynamicCache()
        for index in range(len(behind.keys) if behind is not None else 0):
            cache.update(behind.keys[index][None], behind.values[index][None], index)  # type: ignore[union-attr]
        model.base_model(inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True)
        layers: list[Any] = cache.layers
        return cls(tuple(layer.keys[0] for layer in layers), tuple(layer.values[0] for layer in layers))

    @staticmethod
    def nothing(model: PreTrainedModel) -> DynamicCache:
        """The cache of an LM without a prompt."""
        return DynamicCache(config=model.config.get_text_config())

    @property
    def length(self) -> int:
        return self.keys[0].shape[-2]

    def stacked(self) -> Tensor:
        """(L, 2, P, K, D): the form in which a deep prompt emits it."""
        return torch.stack([torch.stack(self.keys), torch.stack(self.values)], dim=1).transpose(2, 3)

    def shared_cache(self) -> Cache:
        """A cache that shows the prefix to every row and remembers nothing: for training and scoring."""
        return shared_cache(self.keys, self.values)

    def growing_cache(self, model: PreTrainedModel, batch_size: int) -> DynamicCache:
        """An ordinary cache that begins with the prefix in every row: for generation."""
        cache = DynamicCache(config=model.config.get_text_config())
        self._fill(cache, batch_size)
        return cache

    def static_cache(self, model: PreTrainedModel, batch_size: int, room: int) -> StaticCache:
        """The same with fixed memory for `room` tokens behind the prefix."""
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=self.length + room)
        self._fill(cache, batch_size)
        return cache

    def _fill(self, cache: Cache, batch_size: int) -> None:
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            rows = (batch_size, -1, -1, -1)
            cache.update(keys.expand(rows), values.expand(rows), index)  # (B, K, P, D)


def window(model: PreTrainedModel) -> int | None:
    """How far back the nearest-sighted layers see, where some do not see all."""
    layers: list[Any] = DynamicCache(config=model.config.get_text_config()).layers
    return min((layer.sliding_window for layer in layers if layer.is_sliding), default=None)


@dataclass(frozen=True)
class PrefixOfRows:
    """A prefix for each row of a batch. Shorter ones are padded at the front: what is real stays next to the
    text, as sliding windows count it.
    """

    keys: tuple[Tensor, ...]  # L of (B, K, P, D)
    values: tuple[Tensor, ...]  # L of (B, K, P, D)
    mask: Tensor  # (B, P)

    @classmethod
    def side_by_side(cls, prefixes: Sequence[Prefix]) -> "PrefixOfRows":
        longest = max(prefix.length for prefix in prefixes)

        def padded(layers: Sequence[Tensor]) -> Tensor:
            dtype = functools.reduce(torch.promote_types, (layer.dtype for layer in layers))
            rows = [nn.functional.pad(layer, (0, 0, longest - layer.shape[1], 0)) for layer in layers]
            return torch.stack([row.to(dtype) for row in rows])  # (B, K, P, D)

        lengths = torch.tensor([prefix.length for prefix in prefixes], device=prefixes[0].keys[0].device)
        places = torch.arange(longest, device=lengths.device)
        return cls(
            tuple(map(padded, zip(*(prefix.keys for prefix in prefixes), strict=True))),
            tuple(map(padded, zip(*(prefix.values for prefix in prefixes), strict=True))),
            (places >= longest - lengths[:, None]).long(),
        )

    @classmethod
    def read_into(cls, cache: Cache, mask: Tensor) -> "PrefixOfRows":
        """All that a `whole_cache` holds once a text was read, (B, P + T) by its mask: padding behind the
        text moves to the front, so that more can follow.
        """
        longest = int(mask.sum(1).max())
        order = mask.argsort(dim=1, stable=True)[:, -longest:]  # (B, longest): padding first, then as it was
        layers: list[Any] = cache.layers

        def moved(states: Tensor) -> Tensor:
            return states.take_along_dim(order[:, None, :, None], dim=2)

        keys = tuple(moved(layer.keys) for layer in layers)
        return cls(keys, tuple(moved(layer.values) for layer in layers), mask.gather(1, order))

    def of(self, rows: Tensor) -> "PrefixOfRows":
        """Some of the rows, in any order, as often as they are named."""
        keys = tuple(layer[rows] for layer in self.keys)
        return PrefixOfRows(keys, tuple(layer[rows] for layer in self.values), self.mask[rows])

    def shared_cache(self) -> Cache:
        """A cache that remembers nothing of what is read."""
        return shared_cache(self.keys, self.values)

    def whole_cache(self) -> DynamicCache:
        """A cache that remembers everything, beyond a sliding window too."""
        return self._filled(DynamicCache())

    def growing_cache(self, model: PreTrainedModel) -> DynamicCache:
        """An ordinary cache: for generation."""
        return self._filled(DynamicCache(config=model.config.get_text_config()))

    def _filled(self, cache: DynamicCache) -> DynamicCache:
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys, values, index)
        return cache


def shared_cache(keys: Sequence[Tensor], values: Sequence[Tensor]) -> Cache:
    return Cache(layers=[_SharedPrefixLayer(k, v) for k, v in zip(keys, values, strict=True)])


class _SharedPrefixLayer(CacheLayerMixin):
    """Answers `update` with the prefix, expanded to the batch, followed by the new keys and values.

    It stores nothing, so that a layer may be run twice (activation checkpointing) with the same outcome.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the prefix is there from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        rows = (key_states.shape[0], -1, -1, -1)
        keys, values = self.keys.to(key_states.dtype), self.values.to(value_states.dtype)
        return (
            torch.cat([keys.expand(rows), key_states], dim=-2),  # (B, K, P + T, D)
            torch.cat([values.expand(rows), value_states], dim=-2),  # (B, K, P + T, D)
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.keys.shape[-2]

    def get_max_length(self) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """All rows see the same."""
