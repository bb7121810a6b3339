"""What an LM says by itself, whatever the text: taken off its answers, where labels are calibrated.

Zhao et al. (2021), "Calibrate Before Use".
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ptlit.data import LabelWords
from ptlit.ensemble import Ensemble
from ptlit.prompted_lm import PromptedLM


def leaning(prompted_lm: PromptedLM | Ensemble, words: LabelWords, prefix: Any = None) -> Tensor:
    """Log of the mean probability of each label after texts that say nothing, (C,); 0 without such texts."""
    device, rows = prompted_lm.lm.device, words.content_free
    if not rows:
        return torch.zeros(len(words.names), device=device)
    ids = [torch.tensor(row, device=device) for row in rows]
    read = [torch.ones_like(row) for row in ids]
    padded = pad_sequence(ids, batch_first=True), pad_sequence(read, batch_first=True)
    likelihoods = words.of_labels(prompted_lm.label_scores(*padded, words.token_ids, prefix))  # (N, C)
    return likelihoods.log_softmax(1).logsumexp(0) - math.log(len(rows))
