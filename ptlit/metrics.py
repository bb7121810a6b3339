"""What is measured on a split: labels as a classifier is judged, text as a language model is judged."""

import torch
from torch import Tensor, nn
from torchmetrics import ClasswiseWrapper, MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from ptlit.loss import token_losses


class LabelMetrics(nn.Module):
    """Accuracy, macro F1, F1 of each class, expected calibration error (`ece`: how far the probability of an
    answer is from the share of such answers that are right) and the confusion matrix, from label scores.
    """

    headline = ("accuracy", "macro_f1", "loss")

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.names = (*self.headline, "ece", *(f"f1_{name}" for name in names))
        classes = len(names)
        self.scalars = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "macro_f1": MulticlassF1Score(classes, average="macro"),
                "f1": ClasswiseWrapper(MulticlassF1Score(classes, average=None), list(names), prefix="f1_"),
            }
        )
        self.confusion = MulticlassConfusionMatrix(classes)
        self.calibration = MulticlassCalibrationError(classes)
        self.loss = MeanMetric()

    def update(self, scores: Tensor, label: Tensor, right: Tensor, lengths: Tensor) -> None:
        """`scores` (B, C) decide; `label`, the log-probability of the right one, its tokens: all (B,)."""
        self.scalars.update(scores, label)
        self.confusion.update(scores, label)
        self.calibration.update(scores.softmax(-1), label)
        self.loss.update(-right / lengths, weight=lengths)

    def compute(self) -> dict[str, Tensor]:
        self.confusion.compute()  # here, where every rank takes part; the metric remembers it for a picture
        error = self.calibration.compute()
        return {"loss": self.loss.compute(), "ece": error, **self.scalars.compute()}

    def reset(self) -> None:
        self.scalars.reset()
        self.confusion.reset()
        self.calibration.reset()
        self.loss.reset()


class TextMetrics(nn.Module):
    """Perplexity and token accuracy over the learned tokens."""

    headline = names = ("perplexity", "token_accuracy", "loss")

    def __init__(self) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.token_accuracy = MeanMetric()

    def update(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(N, V), (N,) -> (N,), the loss of each learned token."""
        losses = token_losses(logits, targets)
        self.loss.update(losses)
        self.token_accuracy.update((logits.argmax(-1) == targets).float())
        return losses

    def compute(self) -> dict[str, Tensor]:
        loss = self.loss.compute()
        return {"loss": loss, "perplexity": torch.exp(loss), "token_accuracy": self.token_accuracy.compute()}

    def reset(self) -> None:
        self.loss.reset()
        self.token_accuracy.reset()
