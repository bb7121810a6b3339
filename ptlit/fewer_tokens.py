"""A training step that leaves out some virtual tokens by chance: it is that of a shorter prompt.

A token that is left out is nowhere: no layer computes it and nothing attends to it. Set to zero it would
still draw attention, and would be a vector that the LM never meets. The others close up in their order, so
text stands right behind the last of them, as ever; and since attention makes up its own mean, nothing has to
be scaled.
"""

import torch
from torch import Tensor

from ptlit.lm import LMShape
from ptlit.prefix import Prefix
from ptlit.prompt import EmbeddingPrompt, KeyValuePrompt, SoftPrompt
from ptlit.prompted_lm import PromptedLM
from ptlit.reading import LaidOut
from ptlit.token_rows import closed_up


class FewerTokens:
    """Reads rows as `whole` does, with those virtual tokens alone that are True in `stays` (P,)."""

    def __init__(self, whole: PromptedLM, stays: Tensor):
        assert whole.prompt is not None
        self.part = whole.with_prompt(some_of(whole.prompt, stays, whole.lm.shape))
        self.lm = whole.lm
        self.stays = stays
        self.numbers = -stays.long().cumsum(0)  # of those that stay: their ids in the rows of `part`

    @classmethod
    def by_chance(cls, whole: PromptedLM, rate: float) -> "FewerTokens":
        """Every virtual token is left out at `rate`, but never all of them."""
        chance = torch.rand(whole.num_virtual_tokens)
        stays = chance >= rate
        stays[chance.argmax()] = True
        return cls(whole, stays)

    def prefix(self) -> Prefix | None:
        return self.part.prefix()

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor, prefix: Prefix | None = None
    ) -> Tensor:
        """As `PromptedLM.forward`."""
        logits: Tensor = self.part(*self._rows(input_ids, attention_mask, keep), prefix)
        return logits

    def is_laid_out(self, keep: Tensor) -> bool:
        """As `PromptedLM.is_laid_out`."""
        return self.part.is_laid_out(keep)

    def laid_out(
        self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor, prefix: Prefix | None = None
    ) -> LaidOut:
        """As `PromptedLM.laid_out`."""
        return self.part.laid_out(*self._rows(input_ids, attention_mask, keep), prefix)

    def label_scores(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        label_ids: tuple[tuple[int, ...], ...],
        prefix: Prefix | None = None,
    ) -> Tensor:
        """As `PromptedLM.label_scores`."""
        nowhere = torch.zeros_like(input_ids, dtype=torch.bool)
        input_ids, attention_mask, _ = self._rows(input_ids, attention_mask, nowhere)
        return self.part.label_scores(input_ids, attention_mask, label_ids, prefix)

    def _rows(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.part.in_rows:
            return input_ids, attention_mask, keep
        place, is_virtual = (-1 - input_ids).clamp(min=0), input_ids < 0  # (B, T)
        stays = torch.where(is_virtual, self.stays.to(place.device)[place], attention_mask.bool())
        ids = torch.where(is_virtual, self.numbers.to(place.device)[place], input_ids)
        return closed_up(ids, keep, stays)


def some_of(prompt: SoftPrompt, stays: Tensor, shape: LMShape) -> SoftPrompt:
    kept = stays.nonzero()[:, 0]
    if isinstance(prompt, EmbeddingPrompt):
        return SomeEmbeddings(prompt, kept)
    return SomeKeyValues(prompt, kept, shape)


class SomeEmbeddings(EmbeddingPrompt):
    def __init__(self, whole: EmbeddingPrompt, kept: Tensor):
        super().__init__(len(kept))
        self.whole, self.kept = whole, kept

    def forward(self) -> Tensor:
        given: Tensor = self.whole()
        return given[self.kept.to(given.device)]

    def start_at(self, target: Tensor) -> None:
        raise NotImplementedError("a prompt starts as a whole")


class SomeKeyValues(KeyValuePrompt):
    def __init__(self, whole: SoftPrompt, kept: Tensor, shape: LMShape):
        super().__init__(len(kept), shape)
        self.whole, self.kept = whole, kept

    def forward(self) -> Tensor:
        given: Tensor = self.whole()
        return given[:, :, self.kept.to(given.device)]

    def start_at(self, target: Tensor) -> None:
        raise NotImplementedError("a prompt starts as a whole")
