"""One judge for all learners: the same rows, in the same way, by what is asked of the LM and nothing else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptlit.benchmark.learners import Learner
from ptlit.data import Batch, LabelWords
from ptlit.data.collate import Collate, IndexedRow
from ptlit.loss import learned_positions
from ptlit.metrics import LabelMetrics, TextMetrics

WORST = (-math.inf, -math.inf)


@dataclass(frozen=True)
class Scores:
    metrics: dict[str, float]
    score: tuple[float, float]  # more is better; the second decides between equals


class Judge:
    def __init__(
        self,
        rows: Sequence[IndexedRow],
        words: LabelWords | None,
        collate: Collate,
        batch_size: int,  # that of training: no more memory is then needed than training takes
        device: torch.device,
    ):
        self.rows, self.words, self.device = rows, words, device
        by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
        parts = [by_length[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        self.batches = [collate(part) for part in parts]

    @torch.no_grad()
    def judge(self, learner: Learner) -> Scores:
        training = learner.model.training
        learner.model.eval()
        learner.begin_judging()
        found = self._labels(learner, self.words) if self.words is not None else self._texts(learner)
        learner.model.train(training)
        return found

    def _labels(self, learner: Learner, words: LabelWords) -> Scores:
        metrics = LabelMetrics(words.names).to(self.device)
        lengths = torch.tensor([len(ids) for ids in words.firsts], device=self.device)
        for batch in self.batches:
            ids, mask, label = self._text(batch)
            scores = words.of_labels(learner.word_scores(ids, mask, words.token_ids))  # (B, C)
            metrics.update(scores, label, scores.gather(1, label[:, None])[:, 0], lengths[label])
        found = {name: float(metrics.scalars.compute()[name]) for name in ("accuracy", "macro_f1")}
        loss = float(metrics.loss.compute())
        return Scores({**found, "loss": loss}, (found["macro_f1"], -loss) if math.isfinite(loss) else WORST)

    def _text(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What is read of a row, without the label that ends it."""
        text = batch["attention_mask"] * (batch["labels"] == -100)  # (B, T)
        longest = int(text.sum(1).max())
        read = batch["input_ids"][:, :longest] * text[:, :longest], text[:, :longest], batch["label"]
        ids, mask, label = (each.to(self.device) for each in read)
        return ids, mask, label

    def _texts(self, learner: Learner) -> Scores:
        metrics = TextMetrics().to(self.device)
        for batch in self.batches:
            read = batch["input_ids"], batch["attention_mask"], batch["labels"]
            ids, mask, labels = (each.to(self.device) for each in read)
            keep, targets = learned_positions(labels)
            metrics.update(learner.logits(ids, mask, keep), targets)
        found = {name: float(value) for name, value in metrics.compute().items()}
        return Scores(found, (-found["loss"], 0.0) if math.isfinite(found["loss"]) else WORST)
