"""Attention of short rows on a CPU, by plain matrix products.

PyTorch's own is made for long rows. For a tweet it takes longer: of keys and values it wants a copy for each
query head that shares them, and it keeps these for the way back. Here the heads that share keys stand below
each other, as one longer row of queries, and every token is carried from the pack to its place in a row, and
back, in one go: with a way back of its own there is nothing to fill up, put together or add up besides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptlit.pack import Asked, Pack, Rows

BEYOND_PLAIN = ("position_bias", "softcap", "s_aux", "cache")  # they change what attention is


def suits(
    implementation: str,
    pack: Pack,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    options: Mapping[str, Any],
) -> bool:
    """`query` (1, H, S + N, D), `key` (1, K, S + N, D). In long rows the weights that are kept would need
    more memory than those copies.
    """
    rows = pack.rows * (pack.seen_by_all + pack.longest)
    weights = rows * pack.longest + pack.shared * pack.seen_by_all
    copies = 2 * query.shape[3] * (rows + pack.seen_by_all)
    return (
        implementation == "sdpa"
        and mask is not None
        and mask.shape[:2] == (1, 1)
        and query.device.type == "cpu"
        and query.dtype == key.dtype
        and query.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and len(pack.places) > 0
        and weights <= copies
        and not options.get("dropout")
        and all(options.get(name) is None for name in BEYOND_PLAIN)
    )


def half_precision(implementation: str, query: Tensor) -> torch.dtype | None:
    """What it would compute in, where float32 is the better choice: on a CPU the way back through PyTorch's
    own takes several times as long in half precision.
    """
    if implementation != "sdpa" or query.device.type != "cpu":
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def attend(
    pack: Pack,
    asked: Asked | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: tuple[Tensor, Tensor] | None,
    mask: Tensor,
    scaling: float | None,
) -> Tensor:
    """(1, H, S + N, D), and keys and values (1, K, S + N, D) behind those `before`, (K, P, D), to
    (1, S + N, H, D), or of those queries alone that are `asked`; `mask` (1, 1, P + S + T, P + S + T).
    """
    heads = query.shape[1], key.shape[1]
    case = asked is None, *heads, query.dtype, id(mask)  # `mask` is kept, so that its id stays its own
    if case not in pack.made:
        pack.made[case] = mask, parts_of(pack, asked, *heads, mask, query.dtype)
    scaling = scaling if scaling is not None else query.shape[3] ** -0.5
    first = before if before is not None else (None, None)
    outcome: Tensor = _Attention.apply(query, key, value, *first, pack.made[case][1], scaling)  # type: ignore[no-untyped-call]
    return outcome


@dataclass(frozen=True)
class Part:
    """Rows of as many places, and where their heads stand in tables that have one line for each head of each
    token: of queries, and of keys behind those of a prefix.
    """

    rows: int  # B
    behind: int  # P', how many tokens all of them see, the first of the table of keys
    queries: Tensor  # (B * H * Q,) lines of the table of queries
    keys: Tensor  # (B * K * (P' + T),) lines of the table of keys
    outcome: Tensor  # (M * H,) where M queries stand in the rows, padding left out, line by line of the table
    own_keys: Tensor  # (N * K,) likewise the N tokens whose keys no other row sees
    empty: Tensor  # where none stands among the queries
    mask: Tensor  # (1 or B * K, H / K * Q, P' + T), to be added


def parts_of(
    pack: Pack, asked: Asked | None, heads: int, groups: int, mask: Tensor, dtype: torch.dtype
) -> list[Part]:
    """What all rows see, as one row behind the prefix; then the rows."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    mask = mask[0, 0].to(dtype)

    def part(keys: Rows, queries: Rows, behind: int, first: int, within: Tensor) -> Part:
        """The `first` of the queries in their table; they stand `within` the rows of all tokens."""
        seen = torch.arange(behind).expand(keys.rows, -1)
        of_key = torch.cat([seen, behind + in_rows(keys)], dim=1)  # (B, P' + T) of the table
        of_mask = mask[behind + within][..., : behind + keys.longest].repeat(1, heads // groups, 1)
        of_query, empty = stand(queries, heads, 0)
        return Part(
            rows=keys.rows,
            behind=behind,
            queries=lines(first + in_rows(queries), heads),
            keys=lines(of_key, groups),
            outcome=of_query,
            own_keys=stand(keys, groups, behind)[0],
            empty=empty,
            mask=of_mask if len(within) == 1 else of_mask.repeat_interleave(groups, 0),
        )

    if asked is not None:
        return [part(pack, asked, pack.seen_by_all, 0, asked.within)]
    text = part(pack, pack, pack.seen_by_all, pack.shared, torch.arange(pack.longest)[None])
    if not pack.shared:
        return [text]
    front = torch.arange(pack.shared)
    lead = Rows(1, pack.shared, front)
    return [part(lead, lead, pack.before, 0, front[None]), text]


def in_rows(tokens: Rows) -> Tensor:
    """(B, T): which token stands there; padding is the one before it."""
    return (tokens.filled().cumsum(0) - 1).clamp(min=0).view(tokens.rows, tokens.longest)


def lines(tokens: Tensor, heads: int) -> Tensor:
    """Of tokens (B, T), the lines that their heads have in a table, (B * H * T,)."""
    return (tokens[:, None] * heads + torch.arange(heads)[:, None]).flatten()


def stand(tokens: Rows, heads: int, behind: int) -> tuple[Tensor, Tensor]:
    """Of all tokens, where their heads stand in (B, H, P' + T), (N * H,); and where none does."""
    length, filled = behind + tokens.longest, tokens.filled()
    place = torch.arange(tokens.rows * tokens.longest)
    row, place = place // tokens.longest, behind + place % tokens.longest
    every = (row * heads * length + place)[:, None] + torch.arange(heads) * length  # (B * T, H)
    return every[filled].flatten(), every[~filled].flatten()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys_before: Tensor | None,
        values_before: Tensor | None,
        parts: list[Part],
        scaling: float,
    ) -> Tensor:
        _, heads, count, _ = query.shape
        groups, width = key.shape[1], value.shape[3]
        queries, keys, values = table(query), table(key, keys_before), table(value, values_before)
        outcome = queries.new_empty(count, heads, width)
        kept, rest = [], outcome
        for part in parts:
            shape = part.rows * groups, -1  # the heads of a row that share keys are one row
            row_queries = queries.index_select(0, part.queries).view(*shape, queries.shape[1])
            row_keys, row_values = (seen(each, part, shape) for each in (keys, values))
            weights = torch.baddbmm(part.mask, row_queries, row_keys.transpose(1, 2), alpha=scaling)
            torch.softmax(weights, -1, out=weights)
            rest = carry(torch.bmm(weights, row_values), part.outcome, rest)
            kept += [row_queries, weights]
        ctx.save_for_backward(keys, values, *kept)  # not as the rows have them: what all see stands in each
        ctx.parts, ctx.scaling = parts, scaling
        ctx.before, ctx.keys = len(keys) // groups - key.shape[2], key.shape[1:3]
        return outcome[None]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):  # as on the way there
            return _Attention.way_back(ctx, gradient)

    @staticmethod
    def way_back(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, count, heads, width = gradient.shape
        (groups, tokens), before, (keys_seen, values_seen, *kept) = ctx.keys, ctx.before, ctx.saved_tensors
        of_outcome = gradient.reshape(count * heads, width)
        queries = gradient.new_empty(count, heads, kept[0].shape[2])
        keys, values = (
            gradient.new_empty(before + tokens, groups, each.shape[1]) for each in (keys_seen, values_seen)
        )
        keys[: ctx.parts[0].behind] = values[: ctx.parts[0].behind] = 0
        rest = queries
        for index, part in enumerate(ctx.parts):
            row_queries, weights = kept[2 * index : 2 * index + 2]
            shape = part.rows * groups, -1
            row_keys, row_values = (seen(each, part, shape) for each in (keys_seen, values_seen))
            outcome = of_outcome.index_select(0, part.queries).index_fill_(0, part.empty, 0)
            outcome = outcome.view(*row_queries.shape[:2], width)
            of_weights = torch.bmm(outcome, row_values.transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            rest = carry(times(of_scores, row_keys, ctx.scaling), part.outcome, rest)
            for whole, of_rows in (
                (keys, times(of_scores.transpose(1, 2), row_queries, ctx.scaling)),
                (values, torch.bmm(weights.transpose(1, 2), outcome)),
            ):  # (B * K, P' + T, D)
                carry(of_rows, part.own_keys, whole[part.behind :])
                of_seen = of_rows.unflatten(0, (part.rows, groups))[:, :, : part.behind].sum(0)  # (K, P', D)
                whole[: part.behind].add_(of_seen.transpose(0, 1))
        of_keys, of_values = (each.transpose(0, 1).split([before, tokens], dim=1) for each in (keys, values))
        first = (of_keys[0], of_values[0]) if before else (None, None)
        return queries[None].transpose(1, 2), of_keys[1][None], of_values[1][None], *first, None, None


def seen(keys: Tensor, part: Part, shape: tuple[int, int]) -> Tensor:
    """Out of their table, the keys or values that each row sees, (B * K, P' + T, D)."""
    return keys.index_select(0, part.keys).view(*shape, keys.shape[1])


def table(packed: Tensor, before: Tensor | None = None) -> Tensor:
    """(1, K, N, D), and (K, P, D) before them, to ((P + N) * K, D)."""
    tokens = packed[0].transpose(0, 1)  # (N, K, D)
    if before is not None:
        tokens = torch.cat([before.transpose(0, 1), tokens])
    return tokens.reshape(-1, tokens.shape[2])


def carry(rows: Tensor, heads: Tensor, into: Tensor) -> Tensor:
    """These `heads` of (B, T, D), by where they stand, written to tokens of (N, H, D). Those after them."""
    count = len(heads) // into.shape[1]
    torch.index_select(rows.flatten(0, 1), 0, heads, out=into[:count].flatten(0, 1))
    return into[count:]


def times(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """Their product, (B, N, M) and (B, M, D) to (B, N, D), without another pass for the factor."""
    nothing = left.new_empty(())
    return torch.baddbmm(nothing, left, right, beta=0, alpha=factor)
