"""Attention of short rows on a CPU, by plain matrix products.

PyTorch's own is made for long rows. For a tweet it takes longer: of keys and values it wants a copy for each
query head that shares them, and it keeps these for the way back. Here the heads that share keys
stand below each other, as one longer row of queries.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BEYOND_PLAIN = ("position_bias", "softcap", "s_aux", "cache")  # they change what attention is


def suits(
    implementation: str, query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]
) -> bool:
    """`query` (B, H, T, D), `key` (B, K, S, D). In rows longer than twice their width, the weights that are
    kept would need more memory than those copies.
    """
    return (
        implementation == "sdpa"
        and mask is not None
        and mask.shape[:2] == (1, 1)
        and query.device.type == "cpu"
        and query.dtype == key.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and query.shape[2] <= 2 * query.shape[3]
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


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """(B, H, T, D), and keys and values (B, K, S, D), to (B, T, H, D); `mask` (1, 1, T, S)."""
    rows, heads, length, width = query.shape
    shared_by = heads // key.shape[1]
    additive = mask
    if mask.dtype == torch.bool:
        additive = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    scores = torch.baddbmm(
        additive[0].repeat(1, shared_by, 1),
        query.reshape(-1, shared_by * length, width),  # (B * K, H / K * T, D)
        key.flatten(0, 1).transpose(1, 2),
        alpha=scaling if scaling is not None else width**-0.5,
    )
    outcome = torch.bmm(scores.softmax(-1), value.flatten(0, 1))  # (B * K, H / K * T, D)
    return outcome.view(rows, heads, length, -1).transpose(1, 2)
