"""Several prompts on one LM that answer together: the probability of a label is the mean of theirs.

Lester et al. (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning", let theirs vote.
"""

import math
from collections.abc import Sequence

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix
from ptlit.prompted_lm import PromptedLM


class Ensemble:
    """Scores labels as a `PromptedLM` does. The prompts stay those of its members."""

    def __init__(self, members: Sequence[PromptedLM]):
        self.members = tuple(members)
        self.lm = self.members[0].lm

    def prefix(self) -> tuple[Prefix | None, ...]:
        return tuple(member.prefix() for member in self.members)

    def label_scores(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        label_ids: tuple[tuple[int, ...], ...],
        prefix: tuple[Prefix | None, ...] | None = None,
    ) -> Tensor:
        """Log of the mean probability of each label after the text, (B, C)."""
        prefixes = prefix if prefix is not None else self.prefix()
        each = [
            member.label_scores(input_ids, attention_mask, label_ids, own)
            for member, own in zip(self.members, prefixes, strict=True)
        ]
        return torch.stack(each).logsumexp(0) - math.log(len(each))


def size_of(cfg: DictConfig) -> int:
    """How many prompts a run has; earlier ones knew of no other number."""
    said = OmegaConf.select(cfg, "ensemble", default=1)
    if not isinstance(said, int) or said < 1:
        raise UserMistake(f"ensemble={said} must be a whole number, 1 or more.")
    return said
