"""Attention of short rows in a pack is that of PyTorch in float64, and does not take what it cannot."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ptlit.pack import Pack
from ptlit.prefix import Prefix
from ptlit.short_attention import attend, suits


def row_by_row(
    lengths: tuple[int, ...],
    shared: int,
    query: Tensor,
    keys_and_values: tuple[Tensor, Tensor],
    before: tuple[Tensor, Tensor],
    mask: Tensor,
    scaling: float | None,
) -> Tensor:
    """By PyTorch, each row alone: (1, S + N, H, D) of a pack (1, H, S + N, D)."""
    shared_by = query.shape[1] // keys_and_values[0].shape[1]

    def read(own: slice, behind: int) -> Tensor:
        """The tokens `own` of the pack, of which the first stands after `behind` others."""
        seen = [
            torch.cat([first, packed[0, :, : behind - first.shape[1]], packed[0, :, own]], dim=1)
            for first, packed in zip(before, keys_and_values, strict=True)
        ]
        keys, values = (each.repeat_interleave(shared_by, 0) for each in seen)
        end = behind + own.stop - own.start
        place = mask[0, :, behind:end, :end]
        place = place if mask.dtype == torch.bool else place.to(query.dtype)
        found = scaled_dot_product_attention(query[0, :, own], keys, values, attn_mask=place, scale=scaling)
        return found.transpose(0, 1)

    rows = [read(slice(0, shared), before[0].shape[1])]
    for length in lengths:
        start = sum(map(len, rows))
        rows.append(read(slice(start, start + length), before[0].shape[1] + shared))
    return torch.cat(rows)[None]


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "shared", "before"),
    [((3, 7, 1), 6, 2, 5, 0), ((4, 4), 4, 4, 0, 3), ((9,), 3, 1, 2, 4), ((2, 5, 3, 5), 4, 1, 0, 0)],
)
def test_outcome_and_gradients_are_those_of_float64(
    lengths: tuple[int, ...],
    heads: int,
    groups: int,
    shared: int,
    before: int,
    additive: bool,
    scaling: float | None,
) -> None:
    tokens = shared + sum(lengths)
    query = torch.randn(1, tokens, heads, 8).transpose(1, 2)  # as an LM's own lie in memory
    key, value = torch.randn(1, tokens, groups, 8).transpose(1, 2), torch.randn(1, groups, tokens, 6)
    first = [torch.randn(groups, before, width) for width in (8, 6)]
    longest = before + shared + max(lengths)
    mask = torch.ones(longest, longest, dtype=torch.bool).tril()[None, None]
    if additive:
        mask = torch.randn(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    filled = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    pack = Pack.of(filled, shared, nothing_of(first) if before else None)
    weights = torch.linspace(-1, 1, tokens * heads * 6).view(1, tokens, heads, 6)

    def outcome_and_gradients(dtype: torch.dtype, alone: bool) -> tuple[Tensor, ...]:
        given = [each.detach().to(dtype).requires_grad_() for each in (query, key, value, *first)]
        packed, prefix = given[:3], (given[3], given[4])
        if alone:
            found = row_by_row(lengths, shared, packed[0], (packed[1], packed[2]), prefix, mask, scaling)
        else:
            behind = prefix if before else None
            assert suits("sdpa", pack, *packed[:2], mask, {"scaling": scaling, "dropout": 0.0})
            found = attend(pack, None, packed[0], packed[1], packed[2], behind, mask, scaling)
        learned = given if before else packed
        return found, *torch.autograd.grad((found * weights.to(dtype)).sum(), learned)

    expected = outcome_and_gradients(torch.float64, alone=True)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for one, exact in zip(outcome_and_gradients(dtype, alone=False), expected, strict=True):
            torch.testing.assert_close(one.double(), exact, rtol=bound, atol=bound)


def nothing_of(first: list[Tensor]) -> Prefix:
    """A prefix as long as these keys and values."""
    return Prefix((first[0],), (first[1],))


def test_a_row_that_is_not_finite_is_alone_with_it() -> None:
    query = torch.randn(1, 2, 8, 4)
    pack = Pack.of(torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    query[:, :, 0] = torch.nan  # the first token of the first row
    found = attend(pack, None, query, query, query, None, mask, None)
    assert found[:, :2].isnan().all() and found[:, 2:].isfinite().all()


def test_what_is_left_to_others() -> None:
    query, mask = torch.randn(1, 2, 16, 4), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    pack = Pack.of(torch.ones(2, 8))
    assert suits("sdpa", pack, query, query, mask, {})
    assert not suits("eager", pack, query, query, mask, {})
    assert not suits("sdpa", pack, query, query, None, {})
    assert not suits("sdpa", pack, query, query, mask.expand(1, 2, 8, 8), {})  # a mask for each head
    assert not suits("sdpa", pack, query.bfloat16(), query.bfloat16(), mask, {})
    assert not suits("sdpa", pack, query, query, mask, {"dropout": 0.1})
    assert not suits("sdpa", pack, query, query, mask, {"position_bias": mask})
    assert not suits("sdpa", Pack.of(torch.ones(2, 9)), query, query, mask, {})  # longer than twice a head
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits("sdpa", pack, query, query, mask, {})
