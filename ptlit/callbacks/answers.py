"""Keeps what was answered to each row while a split is judged."""

import lightning as L
from torch import Tensor


class Answers(L.Callback):
    def __init__(self) -> None:
        self.probabilities: dict[int, Tensor] = {}  # of each row's labels, (C,)

    def on_test_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: dict[str, Tensor], *batch: object
    ) -> None:
        if "scores" in outputs:
            probabilities = outputs["scores"].softmax(-1).cpu()
            self.probabilities |= zip(outputs["row"].tolist(), probabilities, strict=True)
