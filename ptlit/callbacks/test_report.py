"""What a person wants to see of a test: the confusion matrix, and a few rows with the answers given."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from ptlit.module import SoftPromptModule


class TestReport(L.Callback):
    """Writes both to TensorBoard when a test ends. Rows with the surest wrong answers come first."""

    __test__ = False  # not a test of pytest's

    def __init__(self, num_rows: int = 20):
        self.num_rows = num_rows
        self._given: list[tuple[int, Tensor]] = []

    def on_test_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: dict[str, Tensor], *batch: object
    ) -> None:
        if "scores" in outputs:
            probabilities = outputs["scores"].softmax(-1).cpu()
            self._given += list(zip(outputs["row"].tolist(), probabilities, strict=True))

    def on_test_end(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        given, self._given = self._given, []
        if module.label_words is None or not trainer.is_global_zero:
            return
        names = module.label_words.names
        figure = Figure(figsize=(1.6 * len(names) + 1, 1.6 * len(names)), layout="constrained")
        module.metrics_of("test").confusion.plot(ax=figure.subplots(), labels=list(names))
        samples = self._table(trainer, names, given)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("test/confusion_matrix", figure, trainer.global_step)
                logger.experiment.add_text("test/samples", samples, trainer.global_step)

    def _table(self, trainer: Any, names: tuple[str, ...], given: list[tuple[int, Tensor]]) -> str:
        rows = trainer.datamodule.rows["test"]

        def surprise(answer: tuple[int, Tensor]) -> float:
            index, probabilities = answer
            return float(probabilities[rows[index]["label"]])

        by_surprise = sorted(given, key=surprise)
        half = self.num_rows // 2
        lines = ["| right | answered | sure | text |", "|---|---|---|---|"]
        for index, probabilities in [*by_surprise[:half], *by_surprise[-half:]]:
            row, answer = rows[index], int(torch.argmax(probabilities))
            text = " ".join(row["text"].split()).replace("|", "/")
            lines.append(
                f"| {names[row['label']]} | {names[answer]} | {probabilities[answer]:.2f} | {text} |"
            )
        return "\n".join(lines)
