"""A line when a training goes wrong in a known way, with the setting to change; each is said once."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ptlit.data import Batch
from ptlit.module import SoftPromptModule
from ptlit.prompt import SoftPrompt
from ptlit.prompted_lm import PromptedLM

WORSE_START = 1.1  # times the untrained LM's loss
GROWN, SHRUNK = 100.0, 0.1  # of its size at the start; P-tuning's encoders grow twentyfold and do well
EARLY = 1 / 3  # of all steps, in which good runs too give one label to nearly all rows
SURE = 2.0  # standard errors


class Advice(L.Callback):
    """Looks at the first loss, and at each validation at the prompt's size, at whether the answers differ,
    and at whether they are worse than the untrained LM's with the same template.

    For the last the LM answers `num_rows` rows spread over val (0: none), once; the prompt's answers to them
    are those of the validation. All of val would cost as much as a validation. So few rows leave much to
    chance: a warning needs a difference, row by row, of two standard errors.

    In training on several processes rank zero looks at the rows that it has.
    """

    def __init__(self, num_rows: int = 64):
        self.num_rows = num_rows
        self._said: list[str] = []
        self._size: float | None = None  # at the start
        self._first_loss: float | None = None  # the untrained LM's
        self._untrained: dict[int, float] = {}  # how well each of the rows is answered
        self._prompted: dict[int, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"said": self._said, "size": self._size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._said, self._size = state["said"], state["size"]

    def on_train_start(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        if self._size is None:
            self._size = size(module)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: SoftPromptModule, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and trainer.global_step == batch_idx == 0:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                self._first_loss = module.untrained_loss(batch).item()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: SoftPromptModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._first_loss is None:
            return
        untrained, self._first_loss = self._first_loss, None
        loss = float(trainer.callback_metrics["train/loss"])
        if loss > WORSE_START * untrained:
            self._say(
                module,
                "start",
                f"the first step's loss is {loss:.2f}, the untrained LM's on the same rows {untrained:.2f}: "
                "start nearer to the LM, with prompt.init.from=text or another prompt.init.text.",
            )

    def on_validation_start(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        self._prompted = {}

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: SoftPromptModule, outputs: dict[str, Tensor], batch: Batch, *_: int
    ) -> None:
        if not trainer.is_global_zero or not self.num_rows or "untrained" in self._said or early(trainer):
            return
        apart = -(-len(trainer.val_dataloaders.dataset) // self.num_rows)  # type: ignore[union-attr]
        chosen = batch["row"] % apart == 0
        part = Batch(**{name: each[chosen] for name, each in batch.items()})  # type: ignore[index, typeddict-item]
        rows = part["row"].tolist()
        given = {name: each[chosen] for name, each in outputs.items()}
        self._prompted |= zip(rows, quality(given, part), strict=True)
        if rows and rows[0] not in self._untrained:
            lm = PromptedLM(module.prompted_lm.lm.untrained, None)
            alone = SoftPromptModule(lm, label_words=module.label_words).to(module.device)
            with trainer.precision_plugin.forward_context():
                own = alone.validation_step(part, 0)
            self._untrained |= zip(rows, quality(own, part), strict=True)

    def on_validation_end(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._look_at_size(trainer, module)
        if not early(trainer):
            self._look_at_answers(trainer, module)
            self._compare(trainer, module)

    def _look_at_size(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        assert self._size is not None
        grown = size(module) / self._size if self._size else 1.0
        if grown > GROWN:
            clip = trainer.gradient_clip_val or "none"
            lower = f"lower optim.lr (now {rate(trainer):g}) or trainer.gradient_clip_val (now {clip})."
            self._say(module, "grown", f"the prompt is {grown:,.0f} times as large as at its start: {lower}")
        if grown < SHRUNK:
            decay = "optim.weight_decay or " if trainer.optimizers[0].defaults.get("weight_decay") else ""
            lower = f"lower {decay}optim.lr (now {rate(trainer):g})."
            self._say(module, "shrunk", f"the prompt has {grown:.3f} of its size at the start: {lower}")

    def _look_at_answers(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        if module.label_words is None:
            return
        confusion = module.metrics_of("val").confusion.compute()  # (C, C), rows are the right labels
        given = confusion.sum(0).nonzero()[:, 0].tolist()
        if len(given) == 1 and len(confusion.sum(1).nonzero()) > 1:
            self._say(
                module,
                "same",
                f"at step {trainer.global_step} all rows of val get one label, "
                f"{module.label_words.names[given[0]]}: try another optim.lr (now {rate(trainer):g}), "
                f"more prompt.num_virtual_tokens (now {module.prompted_lm.num_virtual_tokens}) "
                "or data.balanced=true.",
            )

    def _compare(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        rows = sorted(self._prompted.keys() & self._untrained.keys())
        prompted, untrained = [self._prompted[row] for row in rows], [self._untrained[row] for row in rows]
        if surely_worse(prompted, untrained):
            now, own = (sum(each) / len(rows) for each in (prompted, untrained))
            told = f"a loss of {-now:.2f}, the untrained LM one of {-own:.2f}"
            if module.label_words is not None:
                told = f"{now:.0%} of the answers right, the untrained LM {own:.0%}"
            self._say(
                module,
                "untrained",
                f"at step {trainer.global_step} the prompt has {told}, on {len(rows)} rows of val with the "
                f"same template: lower optim.lr (now {rate(trainer):g}) or give prompt.init.from=text.",
            )

    def _say(self, module: SoftPromptModule, what: str, sentence: str) -> None:
        if what not in self._said:
            self._said.append(what)
            module.print(f"Warning: {sentence}")


def early(trainer: L.Trainer) -> bool:
    return trainer.global_step < EARLY * trainer.estimated_stepping_batches


def rate(trainer: L.Trainer) -> float:
    """As it was configured."""
    return trainer.optimizers[0].defaults["lr"]


@torch.no_grad()
def size(module: SoftPromptModule) -> float:
    """Root mean square of what the prompt gives to the LM, without its dropout; of several the largest."""
    return max(map(root_mean_square, module.prompts))


def root_mean_square(prompt: SoftPrompt) -> float:
    training = prompt.training
    prompt.eval()
    given = prompt().float().square().mean().sqrt().item()
    prompt.train(training)
    return given


def quality(outputs: dict[str, Tensor], batch: Batch) -> list[float]:
    """Of each answer: 1 where the label is right, or minus the loss of a text."""
    if "scores" in outputs:
        return (outputs["scores"].argmax(-1) == batch["label"]).float().tolist()
    return (-outputs["loss"]).tolist()


def surely_worse(these: Sequence[float], those: Sequence[float]) -> bool:
    """By the mean of what each row lost; of labels that is McNemar's test."""
    if len(these) < 2:
        return False
    lost = torch.tensor(those) - torch.tensor(these)
    return bool(lost.mean() > SURE * lost.std() / len(these) ** 0.5)
