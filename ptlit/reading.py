"""One pass of a frozen LM over what was laid out for it: rows behind one prompt, or behind several at once.

Beside one another they share its matrix products, as the rows of one pack do; each sees its own prompt alone.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ptlit.head import head_sees_only
from ptlit.lm import FrozenLM
from ptlit.pack import Pack
from ptlit.packing import read_packed
from ptlit.recompute import recomputing


@dataclass(frozen=True, eq=False)
class LaidOut:
    """Rows behind a prompt, as one pack of S + N tokens."""

    tokens: dict[str, Tensor]  # input_ids (1, S + N) or inputs_embeds (1, S + N, H)
    pack: Pack
    keep: Tensor  # (1, S + N): where logits are wanted


def read(lm: FrozenLM, several: Sequence[LaidOut]) -> list[Tensor]:
    """Logits (N, V) where each wants them; their tokens are of the same kind."""
    packs = [each.pack for each in several]
    if lm.may_narrow:
        asking = [each.pack.asking(each.keep) for each in several]
        packs = asking if all(pack.asked is not None for pack in asking) else packs
    names = several[0].tokens
    tokens = {name: torch.cat([each.tokens[name] for each in several], dim=1) for name in names}
    keep = torch.cat([each.keep for each in several], dim=1)
    with head_sees_only(lm.model, keep), layers_as_asked(lm):
        logits = read_packed(lm.model, packs, **tokens)[0]
    return list(logits.split([int(each.keep.sum()) for each in several]))


def layers_as_asked(lm: FrozenLM) -> AbstractContextManager[None]:
    """How layers run while something is learned."""
    if not torch.is_grad_enabled():
        return nullcontext()
    if lm.compiled is not None:
        return lm.compiled.in_use()
    return recomputing(lm.model) if lm.gradient_checkpointing else nullcontext()
