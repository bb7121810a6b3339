"""Attention of short rows is that of PyTorch in float64, and does not take what it cannot."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ptlit.short_attention import attend, suits


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> tuple[Tensor, ...]:
    """By PyTorch, in float64: the outcome (B, T, H, D) and three gradients."""
    shared_by = query.shape[1] // key.shape[1]
    inputs = [each.double().requires_grad_() for each in (query, key, value)]
    keys, values = (each.repeat_interleave(shared_by, 1) for each in inputs[1:])
    mask = mask if mask.dtype == torch.bool else mask.double()
    found = scaled_dot_product_attention(inputs[0], keys, values, attn_mask=mask, scale=scaling).transpose(
        1, 2
    )
    return found, *torch.autograd.grad((found * weights_like(found)).sum(), inputs)


def weights_like(outcome: Tensor) -> Tensor:
    return torch.linspace(-1, 1, outcome.numel()).view(outcome.shape).to(outcome.dtype)


@pytest.mark.parametrize(
    "rows, heads, groups, length, front", [(3, 6, 2, 7, 5), (1, 4, 4, 9, 0), (4, 3, 1, 1, 6)]
)
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("additive", [False, True])
def test_outcome_and_gradients_are_those_of_float64(
    rows: int, heads: int, groups: int, length: int, front: int, scaling: float | None, additive: bool
) -> None:
    query = torch.randn(rows, length, heads, 8).transpose(1, 2)  # as rows out of a pack lie in memory
    key, value = torch.randn(2, rows, groups, front + length, 8).unbind(0)
    mask = torch.ones(length, front + length, dtype=torch.bool).tril(front)[None, None]
    if additive:
        mask = torch.randn(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert suits("sdpa", query, key, mask, {"scaling": scaling, "dropout": 0.0})
    inputs = [each.requires_grad_() for each in (query, key, value)]
    found = attend(query, key, value, mask, scaling)
    gradients = torch.autograd.grad((found * weights_like(found)).sum(), inputs)
    for one, exact in zip(
        (found, *gradients),
        attention(query.detach(), key.detach(), value.detach(), mask, scaling),
        strict=True,
    ):
        torch.testing.assert_close(one, exact.float())


def test_what_is_left_to_others() -> None:
    query, mask = torch.randn(1, 2, 8, 4), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert suits("sdpa", query, query, mask, {})
    assert not suits("eager", query, query, mask, {})
    assert not suits("sdpa", query, query, None, {})
    assert not suits("sdpa", query, query, mask.expand(1, 2, 8, 8), {})  # a mask for each head
    assert not suits("sdpa", query.bfloat16(), query.bfloat16(), mask, {})
    assert not suits("sdpa", query, query, mask, {"dropout": 0.1})
    assert not suits("sdpa", query, query, mask, {"position_bias": mask})
    longer = torch.randn(1, 2, 9, 4)
    assert not suits("sdpa", longer, longer, mask, {})  # than twice its width
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits("sdpa", query, query, mask, {})
