"""What a person wants to see of a test: the confusion matrix, and a few rows with the answers given."""

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from ptlit.callbacks.answers import Answers
from ptlit.module import SoftPromptModule
from ptlit.report import confusion_figure, samples_table


class TestReport(L.Callback):
    """Writes both to TensorBoard when a test ends. Rows with the surest wrong answers come first."""

    __test__ = False  # not a test of pytest's

    def __init__(self, num_rows: int = 20):
        self.num_rows = num_rows
        self._answers = Answers()

    def on_test_batch_end(self, *batch: Any) -> None:
        self._answers.on_test_batch_end(*batch)

    def on_test_end(self, trainer: Any, module: SoftPromptModule) -> None:
        given, self._answers = self._answers.probabilities, Answers()
        if module.label_words is None or not trainer.is_global_zero:
            return
        names = module.label_words.names
        figure = confusion_figure(module.metrics_of("test").confusion, names)
        samples = samples_table(trainer.datamodule.rows["test"], names, given, self.num_rows)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("test/confusion_matrix", figure, trainer.global_step)
                logger.experiment.add_text("test/samples", samples, trainer.global_step)
