"""How a prompted LM is trained and judged: the LightningModule. Its state_dict is what is trained alone."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ptlit.data import Batch, LabelWords
from ptlit.ensemble import Ensemble
from ptlit.fewer_tokens import FewerTokens
from ptlit.leaning import leaning
from ptlit.loss import Loss, learned_positions, learned_token_loss, means_of_rows
from ptlit.metrics import LabelMetrics, TextMetrics
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix
from ptlit.prompt import SoftPrompt
from ptlit.prompted_lm import PromptedLM
from ptlit.reference import Reference
from ptlit.schedule import made as schedule_made

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeSchedule = Callable[..., LRScheduler]  # (optimizer, num_training_steps=...)


class SoftPromptModule(L.LightningModule):
    """Trains the prompt of a `PromptedLM`. With `label_words` rows are classified, without them text is
    learned. `loss` says what is minimised of a row, and `class_weights`, one for each label, what a row
    counts. `kl_weight` times the divergence from the untrained LM is added: it limits what the LM forgets,
    and costs a second pass unless it is 0; that from a `teacher` is added likewise. A training step leaves
    out every virtual token at the rate `drop_virtual_tokens`.

    The `others` are prompts in the same place that learn from the same rows, each as it would alone; labels
    are scored by the mean of what all of them say.
    """

    def __init__(
        self,
        prompted_lm: PromptedLM,
        optimizer: MakeOptimizer = torch.optim.AdamW,
        schedule: MakeSchedule | None = None,
        label_words: LabelWords | None = None,
        loss: Loss | None = None,
        kl_weight: float = 0.0,
        class_weights: Sequence[float] | None = None,
        drop_virtual_tokens: float = 0.0,
        teacher: Reference | None = None,
        others: Sequence[SoftPrompt] = (),
    ):
        super().__init__()
        self.prompted_lm = prompted_lm
        self.others = nn.ModuleList(others)
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.label_words = label_words
        self.loss = loss if loss is not None else Loss()
        if self.loss.label_weight and label_words is None:
            raise UserMistake(
                f"loss.label_weight={self.loss.label_weight} ranks labels, and there are none: leave it out."
            )
        own = Reference("kl", PromptedLM(prompted_lm.lm.untrained, None), kl_weight) if kl_weight else None
        self.references = [each for each in (own, teacher) if each is not None and each.weight]
        if not 0 <= drop_virtual_tokens < 1:
            raise UserMistake(
                f"drop_virtual_tokens={drop_virtual_tokens} must be a number from 0 up to, not including, 1."
            )
        self.drop_virtual_tokens = drop_virtual_tokens
        if self.others and label_words is None:
            raise UserMistake("Several prompts are averaged in what they say of labels, and there are none.")
        self.class_weights: Tensor | None
        weights = torch.tensor(class_weights) if class_weights is not None else None
        self.register_buffer("class_weights", weights, persistent=False)
        self.split_metrics = nn.ModuleDict({"val_": self._new_metrics(), "test_": self._new_metrics()})
        self._prefix: Any = None  # both are known while the prompt does not change
        self._leans: Tensor | None = None
        self._settings_then: list[dict[str, Any]] = []  # of the checkpoint that a run goes on from
        # DDP neither broadcasts nor reduces what every rank has loaded for itself.
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, value in [*self.named_parameters(), *self.named_buffers()]
            if name.startswith("prompted_lm.lm.") and not value.requires_grad
        ]

    @property
    def members(self) -> list[PromptedLM]:
        """The LM behind each of the prompts."""
        return [self.prompted_lm, *map(self.prompted_lm.with_prompt, self.prompts[1:])]

    @property
    def prompts(self) -> list[SoftPrompt]:
        assert self.prompted_lm.prompt is not None, "nothing is trained"
        return [self.prompted_lm.prompt, *cast(Iterable[SoftPrompt], self.others)]

    @property
    def answering(self) -> PromptedLM | Ensemble:
        """What labels are scored by."""
        return Ensemble(self.members) if self.others else self.prompted_lm

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rate = self.drop_virtual_tokens
        each = self.losses_of(
            [FewerTokens.by_chance(member, rate) if rate else member for member in self.members], batch
        )
        total = torch.stack([losses.pop("total") for losses in each]).sum()  # each moves as it would alone
        for name in each[0]:
            mean = torch.stack([losses[name] for losses in each]).mean()
            self.log(f"train/{name}", mean, prog_bar=name == "loss", batch_size=len(batch["labels"]))
        return total

    def losses(self, batch: Batch, prompted_lm: PromptedLM | FewerTokens | None = None) -> dict[str, Tensor]:
        """Those of the first prompt, unless another is given or some of its virtual tokens."""
        return self.losses_of([prompted_lm or self.prompted_lm], batch)[0]

    def losses_of(self, members: Sequence[PromptedLM | FewerTokens], batch: Batch) -> list[dict[str, Tensor]]:
        """Of each: the `loss` of the learned tokens as validation has it, what else counts, and what is
        minimised, the `total`.
        """
        keep, targets = learned_positions(batch["labels"])
        together = Ensemble(members)
        prefixes = together.prefix() if self._labels_are_read_apart else (None,) * len(members)
        logits = together.logits(batch["input_ids"], batch["attention_mask"], keep, prefixes)
        each = zip(logits, members, prefixes, strict=True)
        return [self._losses(batch, keep, targets, *own) for own in each]

    def _losses(
        self,
        batch: Batch,
        keep: Tensor,
        targets: Tensor,
        logits: Tensor,
        prompted_lm: PromptedLM | FewerTokens,
        prefix: Prefix | None,
    ) -> dict[str, Tensor]:
        """From what comes next, (N, V), at the learned positions, and the targets there."""
        weights = self._token_weights(batch, keep)
        losses = {"loss": learned_token_loss(logits, targets, weights)}
        total = losses["loss"]
        if self.loss.label_smoothing:
            losses["loss"] = total.detach()
            total = learned_token_loss(logits, targets, weights, self.loss.label_smoothing)
        if self.loss.label_weight:
            losses["label_loss"] = self._label_loss(batch, logits, prompted_lm, prefix)
            total = total + self.loss.label_weight * losses["label_loss"]
        for reference in self.references:
            losses[reference.name] = reference.divergence(logits, batch, keep)
            total = total + reference.weight * losses[reference.name]
        return losses | {"total": total}

    @property
    def _labels_are_read_apart(self) -> bool:
        """Words of several tokens are scored one by one; those of one token each by the logits at hand."""
        return self.loss.label_weight > 0 and self.label_words is not None and self.label_words.longest > 1

    def _label_loss(
        self, batch: Batch, logits: Tensor, prompted_lm: PromptedLM | FewerTokens, prefix: Prefix | None
    ) -> Tensor:
        """Of the right label among the labels."""
        words, label = self.label_words, batch["label"]
        assert words is not None
        if self._labels_are_read_apart:
            scores = self._likelihoods(batch, prompted_lm, prefix)
        else:  # what all words lack of a log-probability is the same
            scores = words.of_labels(logits.float()[:, [ids[0] for ids in words.token_ids]])  # (B, C)
        weights = self.class_weights[label] if self.class_weights is not None else None
        return learned_token_loss(scores, label, weights, self.loss.label_smoothing)

    def untrained_loss(self, batch: Batch) -> Tensor:
        """What the LM loses on a training batch without any prompt."""
        keep, targets = learned_positions(batch["labels"])
        untrained = PromptedLM(self.prompted_lm.lm.untrained, None)
        logits = untrained(batch["input_ids"], batch["attention_mask"], keep)  # (N, V)
        return learned_token_loss(logits, targets, self._token_weights(batch, keep))

    def _token_weights(self, batch: Batch, keep: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        return self.class_weights[batch["label"]][:, None].expand(keep.shape)[keep]  # (N,)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._judge(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._judge(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"row": batch["row"], "scores": self.scores(batch)}

    def scores(self, batch: Batch) -> Tensor:
        """What decides for a label, (B, C): how likely each is, less the LM's own leaning if known."""
        return self._likelihoods(batch, self.answering, self._shared_prefix()) - self._leaning()

    def _likelihoods(
        self, batch: Batch, prompted_lm: PromptedLM | FewerTokens | Ensemble, prefix: Any
    ) -> Tensor:
        """Log-probability of every label after the text of each row, (B, C)."""
        text = batch["attention_mask"] * (batch["labels"] == -100)  # (B, T): all but the learned end
        longest = int(text.sum(1).max())
        assert self.label_words is not None, "only labels have scores"
        words = self.label_words
        read = batch["input_ids"][:, :longest], text[:, :longest]
        return words.of_labels(prompted_lm.label_scores(*read, words.token_ids, prefix))

    def _leaning(self) -> Tensor:
        if self._leans is None:
            assert self.label_words is not None
            self._leans = leaning(self.answering, self.label_words, self._shared_prefix())
        return self._leans

    def _judge(self, batch: Batch, split: str) -> dict[str, Tensor]:
        metrics = self.metrics_of(split)
        if self.label_words is None:
            keep, targets = learned_positions(batch["labels"])
            logits = self.prompted_lm(
                batch["input_ids"], batch["attention_mask"], keep, self._shared_prefix()
            )
            losses = metrics.update(logits, targets)
            return {"row": batch["row"], "loss": means_of_rows(losses, keep)}
        likelihoods = self._likelihoods(batch, self.answering, self._shared_prefix())
        scores = likelihoods - self._leaning()
        lengths = torch.tensor([len(ids) for ids in self.label_words.firsts], device=scores.device)
        right = likelihoods.gather(1, batch["label"][:, None])[:, 0]  # (B,)
        metrics.update(scores, batch["label"], right, lengths[batch["label"]])
        return {"row": batch["row"], "scores": scores}

    def _shared_prefix(self) -> Any:
        """The prompt does not change while it is judged: one prefix serves the whole epoch."""
        if self._prefix is None:
            self._prefix = self.answering.prefix()
        return self._prefix

    def _forget(self) -> None:
        self._prefix = self._leans = None

    def _start_judging(self, split: str) -> None:
        self._forget()
        self.metrics_of(split).reset()

    def _log_metrics(self, split: str) -> None:
        self._forget()
        shown = {"loss", "macro_f1", "perplexity"}
        for name, value in self.metrics_of(split).compute().items():  # the same in all processes
            on_bar = split == "val" and name in shown
            self.log(f"{split}/{name}", value.float(), prog_bar=on_bar, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        self._start_judging("val")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        self._start_judging("test")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def on_predict_epoch_start(self) -> None:
        self._forget()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was last measured goes along: nobody has to judge the best prompt a second time."""
        found = self.trainer.callback_metrics.items()
        checkpoint["validated"] = {name: value.item() for name, value in found if name.startswith("val/")}
        checkpoint["optimizer_settings"] = self._optimizer_settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        noted_before = [{"lr": rate} for rate in checkpoint.get("learning_rates", ())]
        self._settings_then = checkpoint.get("optimizer_settings", noted_before)

    def on_train_start(self) -> None:
        """A run that goes on with other numbers for its optimizer than before takes them: the checkpoint has
        just brought back its own. What a schedule has made of the learning rate stays in proportion.
        """
        # Where epochs are counted Lightning has made the loader, for the schedule to know its length, before
        # it read where in the epoch the run was, and would begin the epoch again.
        self.trainer.fit_loop._load_combined_loader_states()
        then, self._settings_then = self._settings_then, []
        if not then:
            return
        schedules = [each.scheduler for each in self.trainer.lr_scheduler_configs]
        for optimizer, before, now in zip(
            self.trainer.optimizers, then, self._optimizer_settings(), strict=True
        ):
            changed = {name: now[name] for name in before if name in now and now[name] != before[name]}
            factor = changed.pop("lr") / before["lr"] if "lr" in changed else 1
            for group in optimizer.param_groups:
                group.update(changed)
                for key in {"lr", "initial_lr"} & group.keys() if factor != 1 else ():
                    group[key] *= factor
            for schedule in schedules:
                if factor != 1 and isinstance(schedule, LRScheduler) and schedule.optimizer is optimizer:
                    schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def _optimizer_settings(self) -> list[dict[str, Any]]:
        """The numbers that the optimizers were made with, whatever a schedule has made of them. No flags: an
        optimizer with amsgrad, say, needs what it has not remembered without.
        """
        kinds = (int, float, tuple, list)
        return [
            {
                name: value
                for name, value in each.defaults.items()
                if isinstance(value, kinds) and not isinstance(value, bool)
            }
            for each in self.trainer.optimizers
        ]

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        if self.make_schedule is None:
            return {"optimizer": optimizer}
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = schedule_made(self.make_schedule, optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Each of several prompts by its own norm: how steep one is does not slow down the others."""
        if not self.others or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        self.trainer.precision_plugin.clip_gradients(optimizer, math.inf)  # clips nothing, but may refuse
        for prompt in self.prompts:
            nn.utils.clip_grad_norm_(prompt.parameters(), gradient_clip_val)

    def metrics_of(self, split: str) -> Any:
        return self.split_metrics[f"{split}_"]  # a ModuleDict takes no key that is a method of its own

    def _new_metrics(self) -> LabelMetrics | TextMetrics:
        return LabelMetrics(self.label_words.names) if self.label_words is not None else TextMetrics()
