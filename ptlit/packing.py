"""Rows laid end to end, without padding: every matrix product of the LM sees real tokens only.

Inside attention alone the rows take their own places again, behind what all of them see: a prefix, then the
virtual tokens and the words that all begin with. Those run along at the front of the pack and so share the
LM's matrix products with the rest. The only file that touches the attention API of transformers.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptlit import short_attention
from ptlit.pack import Pack
from ptlit.prefix import Prefix

PACKED = "ptlit_packed"


@dataclass(frozen=True)
class _Reading:
    pack: Pack
    config: PreTrainedConfig
    attention: str  # the implementation that computes


_current: ContextVar[_Reading] = ContextVar("reading")


@contextmanager
def packed(model: PreTrainedModel, pack: Pack) -> Iterator[None]:
    """Inside, the model reads its one row as the rows of `pack`."""
    config = model.config.get_text_config()
    with _within(_Reading(pack, config, config._attn_implementation)):
        yield


def as_now() -> AbstractContextManager[None]:
    """To be entered when a layer runs a second time: after the pack was left, perhaps in another thread."""
    reading = _current.get(None)
    return _within(reading) if reading is not None else nullcontext()


@contextmanager
def _within(reading: _Reading) -> Iterator[None]:
    token = _current.set(reading)
    reading.config._attn_implementation = PACKED
    try:
        yield
    finally:
        reading.config._attn_implementation = reading.attention
        _current.reset(token)


@torch.compiler.disable  # it asks for more than it is given, and every layer would be another case
def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """(1, heads, S + N, D) to (1, S + N, heads, D)."""
    half = short_attention.half_precision(_current.get().attention, query)
    if half is None:
        return _attended(module, query, key, value, mask, options), None
    mask = mask if mask.dtype == torch.bool else mask.float()
    with torch.autocast("cpu", enabled=False):
        outcome = _attended(module, query.float(), key.float(), value.float(), mask, options)
    return outcome.to(half), None


def _attended(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: dict[str, Any]
) -> Tensor:
    reading = _current.get()
    pack = reading.pack
    before: tuple[Tensor, Tensor] | None = None
    if pack.prefix is not None:
        layer: int = module.layer_idx  # type: ignore[assignment]
        before = pack.prefix.keys[layer].to(key.dtype), pack.prefix.values[layer].to(value.dtype)
    if short_attention.suits(reading.attention, pack, query, key, mask, options):
        return short_attention.attend(pack, query, key, value, before, mask, options.get("scaling"))

    attend = partial(ALL_ATTENTION_FUNCTIONS[reading.attention], module, **options)
    # split, not sliced: what flows back is then put together, not added up from tensors full of zeros
    parts = [each.split([pack.shared, each.shape[2] - pack.shared], dim=2) for each in (query, key, value)]
    (lead_query, seen_keys, seen_values), (query, key, value) = zip(*parts, strict=True)  # of S, of N
    if before is not None:
        seen_keys, seen_values = (
            torch.cat([each[None], seen], dim=2)
            for each, seen in zip(before, (seen_keys, seen_values), strict=True)
        )
    every_row = (pack.rows, -1, -1, -1)
    text, _ = attend(
        pack.as_rows(query),
        torch.cat([seen_keys.expand(every_row), pack.as_rows(key)], dim=2),
        torch.cat([seen_values.expand(every_row), pack.as_rows(value)], dim=2),
        mask[:, :, pack.seen_by_all :],
    )
    text = pack.as_pack(text)
    if not pack.shared:
        return text
    mask = mask[:, :, pack.before : pack.seen_by_all, : pack.seen_by_all]
    lead, _ = attend(lead_query, seen_keys, seen_values, mask)
    return torch.cat([lead, text], dim=1)


def _mask(
    mask_function: Any, device: torch.device, use_vmap: bool = False, **sizes_of_the_pack: Any
) -> Tensor:
    """(1, 1, P + T, P + T) for the longest row behind what all see. It serves every row: padding stands at
    the end, where causality hides it.
    """
    pack, masks = _current.get().pack, ALL_MASK_ATTENTION_FUNCTIONS[_current.get().attention]
    longest = pack.seen_by_all + pack.longest
    return masks(
        batch_size=1,
        q_length=longest,
        kv_length=longest,
        mask_function=mask_function,
        allow_is_causal_skip=False,
        use_vmap=use_vmap,
        device=device,
    )


AttentionInterface.register(PACKED, _attend)
AttentionMaskInterface.register(PACKED, _mask)


def attention_is_replaceable(model: PreTrainedModel) -> bool:
    """Not where a family has its own, as all have that are asked for `eager`."""
    return model.config.get_text_config()._attn_implementation in ALL_ATTENTION_FUNCTIONS


@torch.no_grad()
def can_pack(model: PreTrainedModel) -> bool:
    """Try it and look: two rows behind two shared tokens, packed, must be what each row is by itself."""
    if model.device.type == "meta" or not attention_is_replaceable(model):
        return False
    size = model.config.get_text_config().vocab_size
    # ordinary words: in half precision what an LM makes of special ones is mostly rounding
    ids = (torch.arange(8, device=model.device) + size // 2) % size
    shared, rows = ids[:2], [ids[2:3], ids[3:8]]
    alone = torch.cat([_read(model, torch.cat([shared, row]))[2:] for row in rows])
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], device=model.device)
    embeddings = model.get_input_embeddings()(shared)
    try:
        prefix = Prefix.from_embeddings(embeddings, model)
        behind_prefix = read_packed(model, Pack.of(mask, prefix=prefix), input_ids=torch.cat(rows)[None])
        running_along = read_packed(model, Pack.of(mask, shared=2), input_ids=ids[None])[:, 2:]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # the family hands something else to its attention
    exact = alone.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    allowed = float(alone.abs().max()) * (1e-4 if exact else 8e-2)
    return all(float((each[0] - alone).abs().max()) <= allowed for each in (behind_prefix, running_along))


def _read(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False).logits[0]


def read_packed(model: PreTrainedModel, pack: Pack, **tokens: Tensor) -> Tensor:
    """Logits for `input_ids` or `inputs_embeds` of shape (1, S + N, ...)."""
    positions = pack.positions
    with packed(model, pack):
        return model(
            **tokens, attention_mask=torch.ones_like(positions), position_ids=positions, use_cache=False
        ).logits
