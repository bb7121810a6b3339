"""Several prompts on one LM that learn and answer together: a label's probability is the mean of theirs.

Lester et al. (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning", let theirs vote.
"""

import math
from collections.abc import Sequence

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ptlit.fewer_tokens import FewerTokens
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix
from ptlit.prompted_lm import PromptedLM, scores_of_one_token
from ptlit.reading import read
from ptlit.token_rows import last_of


class Ensemble:
    """Reads rows as each of its members does, in one pass for all of them where the LM packs, and scores
    labels as a `PromptedLM` does. The prompts stay those of its members.
    """

    def __init__(self, members: Sequence[PromptedLM | FewerTokens]):
        self.members = tuple(members)
        self.lm = self.members[0].lm

    def prefix(self) -> tuple[Prefix | None, ...]:
        return tuple(member.prefix() for member in self.members)

    def logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        keep: Tensor,
        prefix: Sequence[Prefix | None] | None = None,
    ) -> list[Tensor]:
        """What `PromptedLM.forward` gives, (N, V), of every member."""
        prefixes = prefix if prefix is not None else [None] * len(self.members)
        rows, pairs = (input_ids, attention_mask, keep), list(zip(self.members, prefixes, strict=True))
        if len(pairs) == 1 or not self._shares_a_pass(keep):
            return [member(*rows, own) for member, own in pairs]
        return read(self.lm, [member.laid_out(*rows, own) for member, own in pairs])

    def label_scores(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        label_ids: tuple[tuple[int, ...], ...],
        prefix: tuple[Prefix | None, ...] | None = None,
    ) -> Tensor:
        """Log of the mean probability of each label after the text, (B, C)."""
        prefixes = prefix if prefix is not None else self.prefix()
        last = last_of(attention_mask)
        if max(map(len, label_ids)) == 1 and last.any(1).all() and self._shares_a_pass(last):
            logits = self.logits(input_ids, attention_mask, last, prefixes)
            each = [scores_of_one_token(of_one, label_ids) for of_one in logits]
        else:
            each = [
                member.label_scores(input_ids, attention_mask, label_ids, own)
                for member, own in zip(self.members, prefixes, strict=True)
            ]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    def _shares_a_pass(self, keep: Tensor) -> bool:
        return all(member.is_laid_out(keep) for member in self.members)


def size_of(cfg: DictConfig) -> int:
    """How many prompts a run has; earlier ones knew of no other number."""
    said = OmegaConf.select(cfg, "ensemble", default=1)
    if not isinstance(said, int) or said < 1:
        raise UserMistake(f"ensemble={said} must be a whole number, 1 or more.")
    return said
