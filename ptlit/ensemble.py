"""Several prompts on one LM that answer together: the probability of a label is the mean of theirs.

Lester et al. (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning", section 6.
"""

import math
from collections.abc import Sequence

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ptlit.prefix import Prefix
from ptlit.prompt import SoftPrompt
from ptlit.prompted_lm import PromptedLM

ASIDE = 0.5  # of how widely a start spreads


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
    return int(OmegaConf.select(cfg, "ensemble", default=1))


@torch.no_grad()
def move_aside(prompt: SoftPrompt) -> None:
    """To a start of its own, beside the one that it has: prompts that start alike and read the same rows
    would stay alike.
    """
    training = prompt.training
    given = prompt.eval()()  # (P, H), or (L, 2, P, K, D)
    apart = tuple(range(given.ndim))[-3:]  # keys and values of each layer spread as they do
    width = given.std(apart, keepdim=True)
    drawn = torch.randn(given.shape).to(given.device)  # on the CPU: the same on every device
    prompt.start_at(given + ASIDE * width * drawn)
    prompt.train(training)
