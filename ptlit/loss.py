"""Cross entropy over the learned tokens only; nothing is learned from the text that is read."""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def learned_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the LM has to speak, and what: `keep` (B, T), True one position before each learned token;
    targets (N,).
    """
    wanted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # (B, T)
    keep = wanted != IGNORED
    return keep, wanted[keep]


def learned_token_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the N learned tokens, in float32 whatever the LM's precision. (N, V), (N,) -> ()

    `weights` (N,) makes it a weighted mean.
    """
    if weights is None:
        return F.cross_entropy(logits.float(), targets)
    return (token_losses(logits, targets) * weights).sum() / weights.sum()


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V), (N,) -> (N,)"""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def means_of_rows(each: Tensor, keep: Tensor) -> Tensor:
    """What the learned tokens of each row have on average. (N,), (B, T) -> (B,)"""
    sums = each.new_zeros(len(keep)).index_add(0, keep.nonzero()[:, 0], each)
    return sums / keep.sum(1)


def divergence(logits: Tensor, untrained: Tensor) -> Tensor:
    """How far the prompt moves the LM's predictions: mean KL(untrained || prompted). (N, V), (N, V) -> ()"""
    prompted, own = logits.float().log_softmax(-1), untrained.float().log_softmax(-1)
    return F.kl_div(prompted, own, reduction="batchmean", log_target=True)
