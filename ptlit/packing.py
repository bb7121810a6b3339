"""Rows laid end to end, without padding: every matrix product of the LM sees real tokens only.

Inside attention alone the rows take their own places again, behind what all of them see: a prefix, then the
virtual tokens and the words that all begin with. Those run along at the front of the pack and so share the
LM's matrix products with the rest. Several packs, each with a front of its own, lie one behind the other and
are read in one pass. The only file that touches the attention API of transformers.
"""

from collections.abc import Iterator, Sequence
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
from ptlit.last_layer import for_those, of_all_tokens
from ptlit.layers import layers_of
from ptlit.pack import Pack, asked_of
from ptlit.prefix import Prefix

PACKED = "ptlit_packed"


@dataclass(frozen=True)
class _Reading:
    packs: Sequence[Pack]
    config: PreTrainedConfig
    attention: str  # the implementation that computes
    last: nn.Module | None  # the layer that need not make more than what is asked for


_current: ContextVar[_Reading] = ContextVar("reading")


@contextmanager
def packed(model: PreTrainedModel, packs: Sequence[Pack]) -> Iterator[None]:
    """Inside, the model reads its one row as the rows of these packs, which all ask for some of their tokens
    or none does.
    """
    config = model.config.get_text_config()
    last = layers_of(model)[-1] if packs[0].asked is not None else None
    with _within(_Reading(packs, config, config._attn_implementation, last)):
        yield


def as_now() -> AbstractContextManager[None]:
    """To be entered when a layer runs again: after the pack was left, perhaps in another thread, and as often
    as somebody goes back through a graph that is retained.
    """
    reading = _current.get(None)
    return _Again(reading) if reading is not None else nullcontext()


class _Again(AbstractContextManager[None]):
    def __init__(self, reading: _Reading):
        self.reading = reading

    def __enter__(self) -> None:
        self.within = _within(self.reading)
        self.within.__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        return self.within.__exit__(*raised)


@contextmanager
def _within(reading: _Reading) -> Iterator[None]:
    token = _current.set(reading)
    reading.config._attn_implementation = PACKED
    try:
        with _narrow(reading):
            yield
    finally:
        reading.config._attn_implementation = reading.attention
        _current.reset(token)


def _narrow(reading: _Reading) -> AbstractContextManager[None]:
    if reading.last is None:
        return nullcontext()
    return for_those(asked_of(reading.packs), reading.last)


@torch.compiler.disable  # it asks for more than it is given, and every layer would be another case
def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """(1, heads, S + N, D) to (1, S + N, heads, D)."""
    key, value = of_all_tokens(key, value)
    half = short_attention.half_precision(_current.get().attention, query)
    if half is None:
        return _attended_by_pack(module, query, key, value, mask, options), None
    mask = mask if mask.dtype == torch.bool else mask.float()
    with torch.autocast("cpu", enabled=False):
        outcome = _attended_by_pack(module, query.float(), key.float(), value.float(), mask, options)
    return outcome.to(half), None


def _attended_by_pack(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: dict[str, Any]
) -> Tensor:
    packs = _current.get().packs
    if len(packs) == 1:
        return _attended(packs[0], module, query, key, value, mask, options)
    tokens = [pack.tokens for pack in packs]
    asking = tokens if query.shape[2] == key.shape[2] else [len(pack.asked_tokens) for pack in packs]
    parts = zip(packs, query.split(asking, 2), key.split(tokens, 2), value.split(tokens, 2), strict=True)
    each = [_attended(pack, module, q, k, v, pack.corner_of(mask), options) for pack, q, k, v in parts]
    return torch.cat(each, dim=1)


def _attended(
    pack: Pack,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    options: dict[str, Any],
) -> Tensor:
    reading = _current.get()
    asked = pack.asked if query.shape[2] < key.shape[2] else None
    before: tuple[Tensor, Tensor] | None = None
    if pack.prefix is not None:
        layer: int = module.layer_idx  # type: ignore[assignment]
        before = pack.prefix.keys[layer].to(key.dtype), pack.prefix.values[layer].to(value.dtype)
    if short_attention.suits(reading.attention, pack, query, key, mask, options):
        return short_attention.attend(pack, asked, query, key, value, before, mask, options.get("scaling"))

    attend = partial(ALL_ATTENTION_FUNCTIONS[reading.attention], module, **options)
    # split, not sliced: what flows back is then put together, not added up from tensors full of zeros
    seen_keys, key = key.split([pack.shared, len(pack.places)], dim=2)  # of S, of N
    seen_values, value = value.split([pack.shared, len(pack.places)], dim=2)
    if before is not None:
        seen_keys = torch.cat([before[0][None], seen_keys], dim=2)
        seen_values = torch.cat([before[1][None], seen_values], dim=2)
    every_row = (pack.rows, -1, -1, -1)
    row_keys = torch.cat([seen_keys.expand(every_row), pack.as_rows(key)], dim=2)
    row_values = torch.cat([seen_values.expand(every_row), pack.as_rows(value)], dim=2)
    if asked is not None:
        row_mask = mask[0, 0, pack.seen_by_all + asked.within][:, None]  # (B, 1, T, P + S + T)
        return asked.as_pack(attend(asked.as_rows(query), row_keys, row_values, row_mask)[0])
    lead_query, query = query.split([pack.shared, len(pack.places)], dim=2)
    text, _ = attend(pack.as_rows(query), row_keys, row_values, mask[:, :, pack.seen_by_all :])
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
    masks = ALL_MASK_ATTENTION_FUNCTIONS[_current.get().attention]
    longest = max(pack.seen_by_all + pack.longest for pack in _current.get().packs)
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


def can_pack(model: PreTrainedModel) -> bool:
    """Try it and look: two rows behind two shared tokens, packed, must be what each row is by itself."""
    return model.device.type != "meta" and attention_is_replaceable(model) and _packs(model, narrow=False)


def can_narrow(model: PreTrainedModel) -> bool:
    """The same of an LM that packs, where the last layer is for those tokens alone that are asked for."""
    return bool(layers_of(model)) and _packs(model, narrow=True)


@torch.no_grad()
def _packs(model: PreTrainedModel, narrow: bool) -> bool:
    size = model.config.get_text_config().vocab_size
    # ordinary words: in half precision what an LM makes of special ones is mostly rounding
    ids = (torch.arange(8, device=model.device) + size // 2) % size
    shared, rows = ids[:2], [ids[2:3], ids[3:8]]
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], device=model.device)
    wanted = torch.tensor([1, 0, 0, 1, 0, 1], device=model.device).bool()[None]
    alone = torch.cat([_read(model, torch.cat([shared, row]))[2:] for row in rows])
    embeddings = model.get_input_embeddings()(shared)

    def read(pack: Pack, ids: Tensor) -> Tensor:
        """Logits of the rows, (6, V), or of those that are wanted."""
        keep = nn.functional.pad(wanted, (pack.shared, 0))
        pack = pack.asking(keep) if narrow else pack
        logits = read_packed(model, [pack], input_ids=ids[None])[0, pack.shared :]
        return logits[wanted[0]] if narrow else logits

    try:
        prefix = Prefix.from_embeddings(embeddings, model)
        found = read(Pack.of(mask, prefix=prefix), torch.cat(rows)), read(Pack.of(mask, shared=2), ids)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # the family hands something else to its attention
    alone = alone[wanted[0]] if narrow else alone
    exact = alone.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    allowed = float(alone.abs().max()) * (1e-4 if exact else 8e-2)
    return all(float((each - alone).abs().max()) <= allowed for each in found)


def _read(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False).logits[0]


def read_packed(model: PreTrainedModel, packs: Sequence[Pack], **tokens: Tensor) -> Tensor:
    """Logits for `input_ids` or `inputs_embeds`, (1, S + N, ...), those of all packs in their order."""
    positions = torch.cat([pack.positions for pack in packs], dim=1)
    with packed(model, packs):
        return model(
            **tokens, attention_mask=torch.ones_like(positions), position_ids=positions, use_cache=False
        ).logits
