"""Examples per second in the progress bar, and with the peak of memory among the metrics."""

import resource
import time

import lightning as L
import torch


class Speed(L.Callback):
    """Logged rather than kept: with several processes only what is logged comes back from them."""

    def __init__(self) -> None:
        self.examples = 0
        self.seconds = 0.0  # in training steps, validation left out

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: dict, batch_idx: int
    ) -> None:
        self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: object, batch: dict, batch_idx: int
    ) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)  # what was launched is not yet done
        self.examples += len(batch["input_ids"]) * trainer.world_size
        self.seconds += time.perf_counter() - self._step_began
        rate = self.examples / self.seconds
        module.log("examples/s", rate, prog_bar=True, logger=False)
        module.log_dict({"speed/examples_per_second": rate, "memory/peak_mb": peak_memory_mb(module.device)})


def peak_memory_mb(device: torch.device) -> float:
    """Of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
