"""PEFT in the Trainer of transformers, as its tutorials do it: every row padded to one length beforehand.

`Trainer.train()` runs as it is, in a thread that waits before each step until it is told to go on.
"""

import tempfile
import threading
from queue import SimpleQueue
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from ptlit.benchmark.engines import Engine, Rows, Setup, judged
from ptlit.benchmark.engines.of_peft import learned_by, peft_model
from ptlit.benchmark.engines.padded import PaddedLoss

LENGTH = 64  # max_length of PEFT's tutorials on tweets


def peft_trainer(setup: Setup) -> Engine:
    return TrainerLoop(setup, peft_model(setup))


class TrainerLoop(Engine):
    def __init__(self, setup: Setup, model: PeftModel):
        longest = max(len(row["input_ids"]) for rows in setup.batches for row in rows)
        self.model, self.learned = model, learned_by(model)
        self.loss = PaddedLoss(setup.lm, model, max(LENGTH, longest))  # nothing is cut: all learn the same
        self.turns = Turns()
        self.trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=tempfile.gettempdir(),
                per_device_train_batch_size=len(setup.batches[0]),
                max_steps=1_000_000,
                max_grad_norm=0.0,  # as the others
                lr_scheduler_type="constant",
                train_sampling_strategy="sequential",
                use_cpu=setup.lm.device.type == "cpu",
                dataloader_pin_memory=False,
                save_strategy="no",  # so nothing is written
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=[self._padded(row) for rows in setup.batches for row in rows],  # type: ignore[arg-type]
            data_collator=default_data_collator,
            optimizers=(setup.optimizer(self.learned.values()), None),
            callbacks=[self.turns],
        )

    def _padded(self, row: Any) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.loss.batch([row]).items()}

    def judge(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        return judged(self.model, self.loss, self.learned, rows)

    def step(self, rows: Rows) -> None:
        """Its own loader brings the rows, in the same order."""
        self.turns.take_one(self.trainer)


class Turns(TrainerCallback):
    def __init__(self) -> None:
        self.go: SimpleQueue[None] = SimpleQueue()
        self.done: SimpleQueue[Exception | None] = SimpleQueue()
        self.thread: threading.Thread | None = None

    def take_one(self, trainer: Trainer) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._train, args=(trainer,), daemon=True)
            self.thread.start()
        self.go.put(None)
        if error := self.done.get():
            raise error

    def _train(self, trainer: Trainer) -> None:
        try:
            trainer.train()
        except Exception as error:
            self.done.put(error)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.go.get()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.done.put(None)
