"""What a trained prompt has to beat: the untrained LM with the same template, and one constant answer."""

from collections import Counter, defaultdict
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ptlit.data import ClassificationData, TextData
from ptlit.lm import FrozenLM
from ptlit.metrics import LabelMetrics
from ptlit.module import SoftPromptModule
from ptlit.prompted_lm import PromptedLM


def hard_prompt(lm: FrozenLM, data: TextData[Any], trainer: L.Trainer) -> dict[str, float]:
    """The LM reads template and text without any virtual token."""
    module = SoftPromptModule(PromptedLM(lm.untrained, None), label_words=data.label_words)
    measured = trainer.test(module, datamodule=data, verbose=False)[0]
    return {name: measured[f"test/{name}"] for name in module.metrics_of("test").headline}


def majority(data: ClassificationData) -> dict[str, dict[str, float]]:
    """Always the most frequent class of the training rows; and, where rows have topics, the topic's most
    frequent.
    """
    labels = {split: list(data.encoded[split].label) for split in ("train", "test")}
    most_frequent = Counter(labels["train"]).most_common(1)[0][0]
    answers = {"majority": [most_frequent] * len(labels["test"])}
    by_group: dict[str | None, Counter[int]] = defaultdict(Counter)
    for group, label in zip(data.groups("train"), labels["train"], strict=False):
        by_group[group][label] += 1
    if len(by_group) > 1:
        usual = {group: counts.most_common(1)[0][0] for group, counts in by_group.items()}
        answers["topic_majority"] = [usual.get(group, most_frequent) for group in data.groups("test")]
    return {name: _judge(torch.tensor(given), data) for name, given in answers.items()}


def _judge(answers: Tensor, data: ClassificationData) -> dict[str, float]:
    metrics = LabelMetrics(data.label_words.names).scalars
    metrics.update(answers, torch.tensor(data.encoded["test"].label))
    measured = metrics.compute()
    return {name: float(measured[name]) for name in ("accuracy", "macro_f1")}
