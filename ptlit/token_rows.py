"""Rows of token ids: which of them are not read, and what all rows begin with."""

import torch
from torch import Tensor


def without_places(
    input_ids: Tensor, attention_mask: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as an LM without a prompt reads them: the places of virtual tokens are left out."""
    keep = torch.zeros_like(input_ids, dtype=torch.bool) if keep is None else keep
    words = (input_ids >= 0) & attention_mask.bool()  # (B, T)
    if not bool((input_ids < 0).any()):
        return input_ids, attention_mask, keep
    return closed_up(input_ids, keep, words)


def closed_up(input_ids: Tensor, keep: Tensor, stays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the tokens alone that stay, (B, T), their mask, and what is kept: of a token that goes, the
    last one before it.
    """
    longest = int(stays.sum(1).max())
    order = (~stays).long().argsort(dim=1, stable=True)[:, :longest]
    before = (stays.cumsum(1) - 1).clamp(min=0)  # of each place: the last token up to it, counted from 0
    moved = torch.zeros_like(input_ids).scatter_add(1, before, keep.long()).bool()
    mask = stays.gather(1, order).long()
    return input_ids.gather(1, order) * mask, mask, moved[:, :longest]


def last_of(attention_mask: Tensor) -> Tensor:
    """(B, T): True at the last token of each right-padded row."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return places == attention_mask.sum(1, keepdim=True) - 1


def common_lead(input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> int:
    """How many words all rows begin with, before any that matters: a template's or a system prompt's. They
    need to be read once, as the virtual tokens before them.
    """
    if len(input_ids) == 1:
        return 0
    same = (input_ids == input_ids[0]).all(0) & attention_mask.all(0) & ~keep.any(0)  # (T,)
    return min(int(same.long().cumprod(0).sum()), input_ids.shape[1] - 1)
