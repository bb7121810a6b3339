"""Examples per second in the progress bar, and at the end the figures of the whole fit."""

import resource
import time

import lightning as L
import torch


class Speed(L.Callback):
    def __init__(self) -> None:
        self.examples = 0
        self.seconds_in_steps = 0.0
        self.seconds_in_fit = 0.0

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._fit_began = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: dict, batch_idx: int) -> None:
        self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: object, batch: dict, batch_idx: int
    ) -> None:
        self.examples += len(batch["input_ids"]) * trainer.world_size
        self.seconds_in_steps += time.perf_counter() - self._step_began
        module.log("examples/s", self.examples / self.seconds_in_steps, prog_bar=True, logger=False)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.seconds_in_fit = time.perf_counter() - self._fit_began

    def figures(self) -> dict[str, float]:
        rate = self.examples / self.seconds_in_steps if self.seconds_in_steps else 0.0
        return {
            "speed/examples_per_second": rate,
            "memory/peak_mb": peak_memory_mb(),
            "seconds/fit": self.seconds_in_fit,
        }

    def state_dict(self) -> dict[str, float]:
        return {"examples": self.examples, "seconds_in_steps": self.seconds_in_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.examples, self.seconds_in_steps = int(state["examples"]), state["seconds_in_steps"]


def peak_memory_mb() -> float:
    """Of the GPU's allocator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
