"""PEFT, its LoRA and full fine-tuning in the loop that everybody writes: AdamW, a rate that falls to zero.

The prompts are PEFT's own as it makes them when told the number of virtual tokens and no more.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from ptlit.benchmark.learners import AfterStep, Given, Learner
from ptlit.data import Batch
from ptlit.mistake import UserMistake
from ptlit.products import restore

OPTIONS: dict[str, dict[str, Any]] = {  # of PEFT's own, by the names of our methods
    "prompt_tuning": {"peft_type": "PROMPT_TUNING"},
    "ptuning_mlp": {"peft_type": "P_TUNING", "encoder_reparameterization_type": "MLP"},
    "ptuning_lstm": {"peft_type": "P_TUNING", "encoder_reparameterization_type": "LSTM"},
    "prefix_tuning": {"peft_type": "PREFIX_TUNING"},
    "prefix_projection": {"peft_type": "PREFIX_TUNING", "prefix_projection": True},
}
READ: tuple[Literal["input_ids", "attention_mask", "labels"], ...] = ("input_ids", "attention_mask", "labels")
SAME_IN_PEFT = {"ptuning_v2": "prefix_tuning"}  # it has no dropout on keys and values


def peft(given: Given) -> "PlainLearner":
    from peft import get_peft_config, get_peft_model

    assert given.trial.method is not None
    options = OPTIONS[given.trial.method] | {"num_virtual_tokens": given.plan.num_virtual_tokens}
    model = plain_model(given)
    return PlainLearner(given, get_peft_model(model, get_peft_config(options | {"task_type": "CAUSAL_LM"})))


def lora(given: Given) -> "PlainLearner":
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    return PlainLearner(given, cast(nn.Module, get_peft_model(plain_model(given), config)))


def full(given: Given) -> "PlainLearner":
    return PlainLearner(given, plain_model(given).requires_grad_(True))


def plain_model(given: Given) -> Any:
    """Without anything of ptlit's in it; what is made on it begins by the seed."""
    if given.data.slots:
        raise UserMistake("PEFT has no slots in a template: leave {soft:...} out of data.template.")
    restore(given.lm.model)
    torch.manual_seed(given.trial.seed)
    return given.lm.model


class PlainLearner(Learner):
    def __init__(self, given: Given, model: nn.Module):
        assert given.trial.lr is not None
        self.model, self.device = model, given.lm.device
        self.learned = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.AdamW(self.learned.values(), lr=given.trial.lr)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, 0, given.steps)

    def fit(self, batches: Iterable[Batch], after_step: AfterStep) -> None:
        self.model.train()
        for batch in batches:
            read = {name: batch[name].to(self.device) for name in READ}
            loss = self.model(**read).loss
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            after_step(loss.item(), batch["row"].tolist())

    def begin_judging(self) -> None:
        """PEFT computes the virtual tokens anew for every batch."""

    def word_scores(self, ids: Tensor, mask: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
        """Words that begin with the same tokens are read together: those of one token, the text alone."""
        scores = torch.zeros(len(ids), len(words), device=ids.device)
        ends = mask.sum(1)
        for lead in dict.fromkeys(word[:-1] for word in words):
            longer = nn.functional.pad(ids, (0, len(lead)))  # (B, T + M)
            places = ends[:, None] + torch.arange(len(lead), device=ids.device)  # (B, M)
            longer.scatter_(1, places, torch.tensor(lead).to(longer).expand(len(ids), -1))
            seen = (torch.arange(longer.shape[1], device=ids.device) < ends[:, None] + len(lead)).long()
            asked = ends[:, None] - 1 + torch.arange(len(lead) + 1, device=ids.device)  # (B, M + 1)
            said = self._all_logits(longer, seen)
            said = said.take_along_dim(asked[..., None], 1).float().log_softmax(-1)  # (B, M + 1, V)
            led = sum((said[:, place, token] for place, token in enumerate(lead)), torch.zeros(len(ids)))
            for place, word in enumerate(words):
                if word[:-1] == lead:
                    scores[:, place] = led + said[:, -1, word[-1]]
        return scores

    def logits(self, ids: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        return self._all_logits(ids, mask)[keep]

    def _all_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T, V): of the virtual tokens PEFT gives logits too, where they are embeddings."""
        return self.model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
