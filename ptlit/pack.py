"""Rows laid end to end, without padding: which token stands where, what all rows see, who is asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ptlit.prefix import Prefix


@dataclass(frozen=True, eq=False)
class Rows:
    """Which place each of N tokens, laid end to end, has in its row; B rows, the longest of T tokens."""

    rows: int  # B
    longest: int  # T
    places: Tensor  # (N,) in the padded rows, (B * T)

    def filled(self) -> Tensor:
        """(B * T,): whether a token stands there."""
        nowhere = torch.zeros(self.rows * self.longest, dtype=torch.bool, device=self.places.device)
        return nowhere.index_fill_(0, self.places, True)

    def as_rows(self, packed: Tensor) -> Tensor:
        """(1, K, N, D) to (B, K, T, D); what no token fills is zero."""
        tokens = packed[0].transpose(0, 1)  # (N, K, D)
        if len(self.places) < self.rows * self.longest:
            places = tokens.new_zeros(self.rows * self.longest, *tokens.shape[1:])
            tokens = places.index_copy(0, self.places, tokens)
        return tokens.view(self.rows, self.longest, *tokens.shape[1:]).transpose(1, 2)

    def as_pack(self, rows: Tensor) -> Tensor:
        """(B, T, H, D) to (1, N, H, D)."""
        tokens = rows.flatten(0, 1)  # (B * T, H, D)
        if len(self.places) < len(tokens):
            tokens = tokens.index_select(0, self.places)
        return tokens[None]


@dataclass(frozen=True, eq=False)
class Asked(Rows):
    """Those tokens of a pack whose last hidden states are asked for, as rows of their own."""

    tokens: Tensor  # (N,) which ones of the pack
    within: Tensor  # (B, T) where they stand in the rows of all tokens


@dataclass(frozen=True, eq=False)
class Pack(Rows):
    shared: int = 0  # S tokens at the front of the pack that every row sees
    prefix: Prefix | None = None  # keys and values of P places that come before them
    asked: Asked | None = None
    made: dict[Any, Any] = field(default_factory=dict)  # what one layer works out and the next can use

    @classmethod
    def of(cls, attention_mask: Tensor, shared: int = 0, prefix: Prefix | None = None) -> "Pack":
        """From the mask (B, T) of right-padded rows."""
        rows, longest = attention_mask.shape
        return cls(rows, longest, attention_mask.flatten().nonzero()[:, 0], shared, prefix)

    def asking(self, keep: Tensor) -> "Pack":
        """That only those of (1, S + N) are asked for, none of them at the front; where they are few."""
        tokens = keep[0].nonzero()[:, 0]
        if not 0 < 2 * len(tokens) <= keep.shape[1]:
            return self
        places = self.places[tokens - self.shared]
        row, place = places // self.longest, places % self.longest
        each = row.bincount(minlength=self.rows)  # (B,)
        longest = int(each.max())
        number = torch.arange(len(row), device=row.device) - (each.cumsum(0) - each)[row]
        own = row * longest + number
        within = row.new_zeros(self.rows * longest).index_copy_(0, own, place).view(self.rows, longest)
        return replace(self, asked=Asked(self.rows, longest, own, tokens, within), made={})

    @property
    def tokens(self) -> int:
        """S + N"""
        return self.shared + len(self.places)

    @property
    def asked_tokens(self) -> Tensor:
        assert self.asked is not None, "all are"
        return self.asked.tokens

    @property
    def before(self) -> int:
        return self.prefix.length if self.prefix is not None else 0

    @property
    def seen_by_all(self) -> int:
        return self.before + self.shared

    @property
    def positions(self) -> Tensor:
        """(1, S + N): every row goes on from what all of them see."""
        front = torch.arange(self.before, self.seen_by_all, device=self.places.device)
        return torch.cat([front, self.seen_by_all + self.places % self.longest])[None]

    def corner_of(self, mask: Tensor) -> Tensor:
        """Of a mask for packs that see or read more, its own, (1, 1, P + S + T, P + S + T): one and the same
        for all layers that have that mask.
        """
        size = self.seen_by_all + self.longest
        if mask.shape[-1] == size:
            return mask
        case = "corner", id(mask)  # `mask` is kept, so that its id stays its own
        if case not in self.made:
            self.made[case] = mask, mask[..., :size, :size]
        corner: Tensor = self.made[case][1]
        return corner


def asked_of(packs: Sequence[Pack]) -> Tensor:
    """Which tokens are asked for, of all that lie one pack behind the other."""
    starts = [sum(pack.tokens for pack in packs[:index]) for index in range(len(packs))]
    return torch.cat([start + pack.asked_tokens for start, pack in zip(starts, packs, strict=True)])
