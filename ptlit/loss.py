"""Cross entropy over the learned tokens only; nothing is learned from the text that is read."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ptlit.mistake import UserMistake

IGNORED = -100


@dataclass(frozen=True)
class Loss:
    """What is minimised: the loss of the learned tokens and `label_weight` times that of the right label
    among the labels, by the scores that decide between them. `label_smoothing` is the share of both that goes
    to all tokens, or all labels, alike.
    """

    label_weight: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_weight < math.inf:
            raise UserMistake(f"loss.label_weight={self.label_weight} must be 0 or more.")
        if not 0 <= self.label_smoothing < 1:
            raise UserMistake(
                f"loss.label_smoothing={self.label_smoothing} must be a number from 0 up to, not including,"
                " 1."
            )


def learned_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the LM has to speak, and what: `keep` (B, T), True one position before each learned token;
    targets (N,).
    """
    wanted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # (B, T)
    keep = wanted != IGNORED
    return keep, wanted[keep]


def learned_token_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over the N learned tokens, in float32 whatever the LM's precision. (N, V), (N,) -> ()

    `weights` (N,) makes it a weighted mean. Of B labels, told from C others by their scores, the same.
    """
    if weights is None:
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    each = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
    return (each * weights).sum() / weights.sum()


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V), (N,) -> (N,)"""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def means_of_rows(each: Tensor, keep: Tensor) -> Tensor:
    """What the learned tokens of each row have on average. (N,), (B, T) -> (B,)"""
    sums = each.new_zeros(len(keep)).index_add(0, keep.nonzero()[:, 0], each)
    return sums / keep.sum(1)


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """How far predictions are from others: mean KL(reference || logits). (N, V), (N, V) -> ()"""
    prompted, own = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return F.kl_div(prompted, own, reduction="batchmean", log_target=True)
