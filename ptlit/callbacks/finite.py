"""A run whose loss or gradient is no number any more ends at once, before that reaches a checkpoint.

So does one whose LM lets no gradient through.
"""

import math
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule

SKIPPED_IN_A_ROW = 20  # steps that a GradScaler may skip: its scale is then a millionth of what it was


class Finite(L.Callback):
    """Gradients are measured where they lie, and looked at when the batch ends: there the loss is fetched
    from a GPU anyway, and checkpoints come after all other callbacks. So nothing waits for this.

    A GradScaler (trainer.precision=16-mixed) tries out how far it can go: steps whose gradients are infinite
    it skips and halves its scale. Only when that does not help is the run stopped.
    """

    def __init__(self) -> None:
        self._step = 0  # counted from 1, as a person would
        self._gradient: Tensor | None = None  # the largest of the step, ()
        self._skipped = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, module: SoftPromptModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step + 1

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: SoftPromptModule, optimizer: Optimizer
    ) -> None:
        parameters = (each for group in optimizer.param_groups for each in group["params"])
        gradients = [each.grad for each in parameters if each.grad is not None]
        self._gradient = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: SoftPromptModule,
        outputs: dict[str, Tensor],
        batch: Any,
        batch_idx: int,
    ) -> None:
        gradient, self._gradient = self._gradient, None
        found = outputs["loss"].detach()[None]
        if gradient is not None:
            found = torch.cat([found, gradient.detach()[None].to(found)])
        loss, *largest = found.tolist()
        if not math.isfinite(loss):
            self._stop(f"The loss of step {self._step} is {loss}", trainer, module, self._step > 1)
        if not largest:  # amid accumulated gradients
            return
        if self._step == 1 and largest[0] == 0 < loss and not scales_gradients(trainer):
            self._end(f"No gradient comes back through the LM: {another_lm(module)}", trainer, module)
        self._skipped = 0 if math.isfinite(largest[0]) else self._skipped + 1
        if self._skipped > (SKIPPED_IN_A_ROW if scales_gradients(trainer) else 0):
            too_large = f"A gradient of step {self._step} is {largest[0]}"
            self._stop(too_large, trainer, module, self._step > 1)

    def on_validation_end(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        loss = float(trainer.callback_metrics.get("val/loss", 0.0))
        if trainer.state.fn == TrainerFn.FITTING and not math.isfinite(loss):
            self._stop(f"The validation loss after step {self._step} is {loss}", trainer, module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: SoftPromptModule, checkpoint: dict[str, Any]
    ) -> None:
        """A finite gradient too can lead to a weight that is not."""
        if not all(weight.isfinite().all() for weight in module.parameters() if weight.requires_grad):
            self._stop(f"A weight after step {self._step} is not finite", trainer, module)

    def _stop(
        self, found: str, trainer: L.Trainer, module: SoftPromptModule, has_learned: bool = True
    ) -> NoReturn:
        self._end(f"{found}{cure(trainer, module, has_learned)}", trainer, module)

    def _end(self, sentence: str, trainer: L.Trainer, module: SoftPromptModule) -> NoReturn:
        if (bar := trainer.progress_bar_callback) is not None:
            bar.on_train_end(trainer, module)  # or it would be drawn once more, below what is said
        raise UserMistake(sentence)


def cure(trainer: L.Trainer, module: SoftPromptModule, has_learned: bool) -> str:
    """The end of the sentence: what can be done about it."""
    dtype = str(module.prompted_lm.lm.dtype).removeprefix("torch.")
    exact = [] if dtype == "float32" else [f"model.dtype=float32 (now {dtype})"]
    if trainer.precision != "32-true":
        exact.append(f"trainer.precision=32-true (now {trainer.precision})")
    if not has_learned:
        start = "another prompt.init.from"
        return f", before anything is learned: give {' or '.join([*exact, start])}."
    rate, clip = trainer.optimizers[0].defaults["lr"], trainer.gradient_clip_val
    lower = f"optim.lr (now {rate:g})"
    if clip:
        lower += f" or trainer.gradient_clip_val (now {clip:g})"
    else:
        exact = ["trainer.gradient_clip_val=1.0 (now none)", *exact]
    return f": lower {lower}{', or give ' if exact else ''}{' or '.join(exact)}."


def another_lm(module: SoftPromptModule) -> str:
    if getattr(module.prompted_lm.lm.model, "is_quantized", False):
        return "quantised as they are, its weights have no way back here: give another model.quantization."
    return "its code cuts them off, and nothing could be learned: give another model.name_or_path."


def scales_gradients(trainer: L.Trainer) -> bool:
    precision = trainer.precision_plugin
    return isinstance(precision, MixedPrecision) and precision.scaler is not None
