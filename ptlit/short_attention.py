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

from ptlit.pack import Pack

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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: tuple[Tensor, Tensor] | None,
    mask: Tensor,
    scaling: float | None,
) -> Tensor:
    """(1, H, S + N, D), and keys and values (1, K, S + N, D) behind those `before`, (K, P, D), to
    (1, S + N, H, D); `mask` (1, 1, P + S + T, P + S + T).
    """
    heads = query.shape[1], key.shape[1]
    asked = *heads, query.dtype, id(mask)  # `mask` is kept with what is made of it, so its id stays its own
    if asked not in pack.made:
        pack.made[asked] = mask, parts_of(pack, *heads, mask, query.dtype)
    scaling = scaling if scaling is not None else query.shape[3] ** -0.5
    first = before if before is not None else (None, None)
    outcome: Tensor = _Attention.apply(query, key, value, *first, pack.made[asked][1], scaling)  # type: ignore[no-untyped-call]
    return outcome


@dataclass(frozen=True)
class Part:
    """Rows of as many places, and where their heads stand in tables that have one line for each head of each
    token: queries (S + N) * H, keys and values (P + S + N) * K.
    """

    rows: int  # B
    tokens: int  # N, without padding
    behind: int  # P', how many tokens all of them see, the first of the table
    queries: Tensor  # (B * H * T,) lines of the table of queries
    keys: Tensor  # (B * K * (P' + T),) lines of the table of keys
    outcome: Tensor  # (N * H,) the places of a row whose heads are asked for, line by line of the outcome
    own_keys: Tensor  # (N * K,) likewise among the keys
    empty: Tensor  # places of queries that no token fills
    mask: Tensor  # (1, H / K * T, P' + T), to be added


def parts_of(pack: Pack, heads: int, groups: int, mask: Tensor, dtype: torch.dtype) -> list[Part]:
    """What all rows see, as one row behind the prefix; then the rows."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    mask = mask.to(dtype)

    def part(rows: int, behind: int, filled: Tensor, first: int) -> Part:
        """`filled` (B * T,) by tokens of the pack from `first` on; padding stands for the one before it."""
        tokens = first + (filled.cumsum(0) - 1).clamp(min=0).view(rows, -1)  # (B, T)
        length = tokens.shape[1]
        keys = torch.cat([torch.arange(behind).expand(rows, -1), pack.before + tokens], dim=1)  # (B, P' + T)
        head, group = torch.arange(heads), torch.arange(groups)
        row, place = torch.arange(rows * length) // length, torch.arange(rows * length) % length
        query_places = (row * heads * length + place)[:, None] + head * length  # (B * T, H)
        key_places = (row * groups * keys.shape[1] + behind + place)[:, None] + group * keys.shape[1]
        return Part(
            rows=rows,
            tokens=int(filled.sum()),
            behind=behind,
            queries=(tokens[:, None] * heads + head[:, None]).flatten(),
            keys=(keys[:, None] * groups + group[:, None]).flatten(),
            outcome=query_places[filled].flatten(),
            own_keys=key_places[filled].flatten(),
            empty=query_places[~filled].flatten(),
            mask=mask[0, :, behind : behind + length, : behind + length].repeat(1, heads // groups, 1),
        )

    front = torch.ones(pack.shared, dtype=torch.bool)
    text = part(pack.rows, pack.seen_by_all, pack.filled(), pack.shared)
    return [part(1, pack.before, front, 0), text] if pack.shared else [text]


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
        _, heads, tokens, _ = query.shape
        groups, width = key.shape[1], value.shape[3]
        queries, keys, values = table(query), table(key, keys_before), table(value, values_before)
        outcome = queries.new_empty(tokens, heads, width)
        kept, begin = [], 0
        for part in parts:
            shape = part.rows * groups, -1  # the heads of a row that share keys are one row
            row_queries = queries.index_select(0, part.queries).view(*shape, queries.shape[1])
            row_keys = keys.index_select(0, part.keys).view(*shape, keys.shape[1])
            row_values = values.index_select(0, part.keys).view(*shape, width)
            weights = torch.baddbmm(part.mask, row_queries, row_keys.transpose(1, 2), alpha=scaling)
            torch.softmax(weights, -1, out=weights)
            end = begin + part.tokens
            gather(torch.bmm(weights, row_values), part.outcome, outcome[begin:end])
            kept += [row_queries, row_keys, row_values, weights]
            begin = end
        ctx.save_for_backward(*kept)
        ctx.parts, ctx.scaling, ctx.groups = parts, scaling, groups
        ctx.before = keys_before.shape[1] if keys_before is not None else 0
        return outcome[None]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @torch.autocast("cpu", enabled=False)  # as on the way there
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _, tokens, heads, width = gradient.shape
        groups, before, kept = ctx.groups, ctx.before, ctx.saved_tensors
        lines = gradient.reshape(tokens * heads, width)
        queries = lines.new_empty(tokens, heads, kept[0].shape[2])
        keys, values = (lines.new_empty(before + tokens, groups, each.shape[2]) for each in kept[1:3])
        keys[:before] = values[:before] = 0
        begin = 0
        for index, part in enumerate(ctx.parts):
            row_queries, row_keys, row_values, weights = kept[4 * index : 4 * index + 4]
            outcome = lines.index_select(0, part.queries).index_fill_(0, part.empty, 0)
            outcome = outcome.view(*row_queries.shape[:2], width)
            of_weights = torch.bmm(outcome, row_values.transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            end = begin + part.tokens
            gather(times(of_scores, row_keys, ctx.scaling), part.outcome, queries[begin:end])
            for whole, of_rows in (
                (keys, times(of_scores.transpose(1, 2), row_queries, ctx.scaling)),
                (values, torch.bmm(weights.transpose(1, 2), outcome)),
            ):  # (B * K, P' + T, D)
                gather(of_rows, part.own_keys, whole[before + begin : before + end])
                seen = of_rows.unflatten(0, (part.rows, groups))[:, :, : part.behind].sum(0)  # (K, P', D)
                whole[: part.behind].add_(seen.transpose(0, 1))
            begin = end
        of_keys, of_values = (each.transpose(0, 1).split([before, tokens], dim=1) for each in (keys, values))
        first = (of_keys[0], of_values[0]) if before else (None, None)
        return queries[None].transpose(1, 2), of_keys[1][None], of_values[1][None], *first, None, None


def table(packed: Tensor, before: Tensor | None = None) -> Tensor:
    """(1, K, N, D), and (K, P, D) before them, to ((P + N) * K, D)."""
    tokens = packed[0].transpose(0, 1)  # (N, K, D)
    if before is not None:
        tokens = torch.cat([before.transpose(0, 1), tokens])
    return tokens.reshape(-1, tokens.shape[2])


def gather(lines: Tensor, places: Tensor, into: Tensor) -> None:
    """Those lines of (B, T, D), written to (N, H, D)."""
    torch.index_select(lines.flatten(0, 1), 0, places, out=into.flatten(0, 1))


def times(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """Their product, (B, N, M) and (B, M, D) to (B, N, D), without another pass for the factor."""
    nothing = left.new_empty(())
    return torch.baddbmm(nothing, left, right, beta=0, alpha=factor)
