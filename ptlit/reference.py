"""Near whose predictions a training stays: the LM's as it was, or those of the LM behind another prompt."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptlit.data import Batch
from ptlit.loss import divergence
from ptlit.prefix import Prefix
from ptlit.prompted_lm import PromptedLM
from ptlit.token_rows import without_places


@dataclass
class Reference:
    """It never changes, so what its prompt is to the LM is computed once. `name` is its own in the log."""

    name: str
    prompted_lm: PromptedLM
    weight: float = 1.0
    temperature: float = 1.0
    _prefix: Prefix | None = field(default=None, init=False)
    _is_ready: bool = field(default=False, init=False)
    _batch: Batch | None = field(default=None, init=False)  # that was read last
    _logits: Tensor = field(default_factory=lambda: torch.empty(0), init=False)  # what was said of it

    def divergence(self, logits: Tensor, batch: Batch, keep: Tensor) -> Tensor:
        """Of `logits` (N, V), predicted where `keep` (B, T) is True. Hinton et al. (2015), "Distilling the
        Knowledge in a Neural Network": the square makes up for gradients that shrink with temperature.
        """
        if self._batch is not batch:  # several prompts may learn from it
            self._batch, self._logits = batch, self.logits(batch, keep)
        own, softness = self._logits, self.temperature
        return softness**2 * divergence(logits.float() / softness, own.float() / softness)

    @torch.no_grad()
    def logits(self, batch: Batch, keep: Tensor) -> Tensor:
        """(N, V)"""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if not self.prompted_lm.in_rows:
            ids, mask, keep = without_places(ids, mask, keep)
        if not self._is_ready:  # nobody else moves it to where the training is
            self._prefix, self._is_ready = self.prompted_lm.to(ids.device).prefix(), True
        logits: Tensor = self.prompted_lm(ids, mask, keep, self._prefix)
        return logits
