"""Training by hand, without Hydra: what Lightning users rely on, against an uninterrupted run."""

import csv
import functools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from methods import make_prompt
from tiny import tiny_lm
from transformers import get_scheduler

from ptlit.callbacks.random_state import RandomState
from ptlit.data import ClassificationData
from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions
from ptlit.module import SoftPromptModule
from ptlit.prompted_lm import PromptedLM


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama", spread=0.2)


@pytest.fixture(scope="module")
def moods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task a tiny LM can learn from its last bytes alone."""
    path = tmp_path_factory.mktemp("data") / "moods.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(120):
            word = f"flight {index * 7919 % 1000} was"
            writer.writerow([f"{word} late!!!", "bad"] if index % 2 else [f"{word} lovely :)", "good"])
    return path


def data_of(lm: FrozenLM, path: Path, **options: object) -> ClassificationData:
    plain = {"batch_size": 8, "max_length": 64, "template": "{text}"}
    data = ClassificationData(tokenizer=lm.tokenizer, path=str(path), **(plain | options))
    data.setup()
    return data


CHANCE = {"ptuning_v2": {"dropout": 0.1}}  # what a run draws has to go on too


def module_of(
    lm: FrozenLM,
    data: ClassificationData,
    method: str = "prefix_tuning",
    lr: float = 0.02,
    members: int = 1,
    **options: Any,
) -> SoftPromptModule:
    torch.manual_seed(3)
    prompt, *others = (make_prompt(method, lm.shape, **CHANCE.get(method, {})) for _ in range(members))
    return SoftPromptModule(
        PromptedLM(lm, prompt),
        others=others,
        optimizer=functools.partial(torch.optim.AdamW, lr=lr),
        schedule=functools.partial(get_scheduler, name="cosine", num_warmup_steps=2),
        label_words=data.label_words,
        class_weights=data.class_weights,
        **options,
    )


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *batch: object
    ) -> None:
        self.seen.append(outputs["loss"].item())


def trainer_of(folder: Path, *callbacks: L.Callback, max_steps: int = 24, **options: object) -> L.Trainer:
    plain = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "gradient_clip_val": 1.0,
    }
    return L.Trainer(
        default_root_dir=folder, max_steps=max_steps, callbacks=list(callbacks), **(plain | options)
    )


@pytest.mark.parametrize("words", [{"bad": "b", "good": "g"}, {"bad": " bad", "good": " good"}])
def test_class_weights_are_those_of_torch(lm: FrozenLM, moods: Path, words: dict[str, str]) -> None:
    """Every token of a row counts what its label does, as torch's own weighted cross entropy has it."""
    weights = {"bad": 3.0, "good": 0.5}
    data = data_of(lm, moods, class_weights=weights, label_words=words, by_length=False)
    module = module_of(lm, data)
    module.log = lambda *said, **how: None  # type: ignore[method-assign]
    batch = next(iter(data.train_dataloader()))
    assert len(batch["label"].unique()) == 2
    loss = module.training_step(batch, 0)

    keep, targets = learned_positions(batch["labels"])
    logits = module.prompted_lm(batch["input_ids"], batch["attention_mask"], keep)
    names = [data.label_words.names[batch["label"][row]] for row in keep.nonzero()[:, 0]]
    each = F.cross_entropy(logits, targets, reduction="none")
    of_token = torch.tensor([weights[name] for name in names])
    torch.testing.assert_close(loss, (each * of_token).sum() / of_token.sum())
    if len(words["bad"]) == 1:  # a token stands for a label, so torch can be told the weights of both
        of_word = torch.ones(logits.shape[1])
        for name, (token,) in zip(data.label_words.names, data.label_words.token_ids, strict=True):
            of_word[token] = weights[name]
        torch.testing.assert_close(loss, F.cross_entropy(logits, targets, weight=of_word))
    assert abs((loss - each.mean()).item()) > 1e-3
    assert all(name.startswith("prompted_lm.prompt.") for name in module.state_dict())


def test_a_bare_trainer_learns(lm: FrozenLM, moods: Path, tmp_path: Path) -> None:
    data = data_of(lm, moods)
    module = module_of(lm, data, lr=0.2)
    trainer = trainer_of(tmp_path, max_steps=100)
    untrained = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    trained = trainer.test(module, data, verbose=False)[0]
    assert trained["test/loss"] < untrained["val/loss"] / 2
    assert trained["test/macro_f1"] > 0.9
    assert {"test/accuracy", "test/f1_bad", "test/f1_good"} <= trained.keys()


def test_validation_loss_is_the_training_loss_of_the_same_rows(
    lm: FrozenLM, moods: Path, tmp_path: Path
) -> None:
    data = data_of(lm, moods, eval_batch_size=500)
    module = module_of(lm, data)
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        keep = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100) != -100
        logits = module.prompted_lm(batch["input_ids"], batch["attention_mask"], keep)
        expected = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][keep[:, :-1]])
    measured = trainer_of(tmp_path).validate(module, data, verbose=False)[0]
    assert measured["val/loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", ["ptuning_lstm", "ptuning_v2"])  # one without and one with dropout
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_continues_bit_for_bit(
    lm: FrozenLM, moods: Path, tmp_path: Path, method: str, accumulate: int
) -> None:
    def run(name: str, resume: Path | None = None, **options: object) -> tuple[list[float], torch.Tensor]:
        losses = Losses()
        keeper = ModelCheckpoint(
            dirpath=tmp_path / name, every_n_train_steps=7, save_top_k=-1, filename="{step}"
        )
        data = data_of(lm, moods)
        module = module_of(lm, data, method)
        trainer = trainer_of(
            tmp_path / name, losses, keeper, RandomState(), accumulate_grad_batches=accumulate, **options
        )
        torch.manual_seed(5 if resume is None else 99)
        trainer.fit(module, data, ckpt_path=resume and str(resume), weights_only=True)
        return losses.seen, module.prompted_lm.prompt.eval()()

    whole, prompt = run("whole")
    rest, resumed_prompt = run("resumed", tmp_path / "whole" / "step=7.ckpt")
    assert rest == whole[7 * accumulate :]
    assert torch.equal(prompt, resumed_prompt)


def test_checkpoints_are_kilobytes_and_refuse_another_prompt(
    lm: FrozenLM, moods: Path, tmp_path: Path
) -> None:
    data = data_of(lm, moods)
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.fit(module_of(lm, data, "prompt_tuning"), data)
    path = tmp_path / "small.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert list(state) == [f"prompted_lm.prompt.{name}" for name in ("embedding.weight", "scale.value")]
    assert path.stat().st_size < 20_000
    with pytest.raises(RuntimeError, match="Missing key|Unexpected key"):
        trainer.test(
            module_of(lm, data, "ptuning_mlp"), data, ckpt_path=path, weights_only=True, verbose=False
        )


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("method", ["prompt_tuning", "ptuning_lstm", "prefix_tuning"])
def test_half_precision_follows_full_precision(
    moods: Path, tmp_path: Path, precision: str, method: str
) -> None:
    def losses(**options: object) -> list[float]:
        lm = tiny_lm("llama", spread=0.2)  # its own: true half precision changes the LM's weights
        data = data_of(lm, moods)
        seen = Losses()
        trainer_of(tmp_path, seen, max_steps=12, **options).fit(module_of(lm, data, method), data)
        return seen.seen

    assert losses(precision=precision) == pytest.approx(losses(), rel=0.1, abs=0.1)


def test_lm_in_bfloat16_under_a_prompt_in_float32(moods: Path, tmp_path: Path) -> None:
    plain = tiny_lm("llama", spread=0.2)
    lm = FrozenLM(plain.model.bfloat16(), plain.tokenizer)
    data = data_of(lm, moods)
    module = module_of(lm, data, "ptuning_mlp")
    losses = Losses()
    trainer_of(tmp_path, losses, max_steps=40, precision="bf16-mixed").fit(module, data)
    assert {p.dtype for p in module.prompted_lm.prompt.parameters()} == {torch.float32}
    assert {p.dtype for p in module.prompted_lm.lm.parameters()} == {torch.bfloat16}
    assert sum(losses.seen[-5:]) < sum(losses.seen[:5]) * 0.8


def test_weight_averaging_shares_the_frozen_lm(lm: FrozenLM, moods: Path, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    data = data_of(lm, moods)
    module = module_of(lm, data)
    before = [p.clone() for p in lm.parameters()]
    averaging = EMAWeightAveraging(decay=0.5)
    trainer_of(tmp_path, averaging, max_steps=6).fit(module, data)
    assert all(torch.equal(a, b) for a, b in zip(before, lm.parameters(), strict=True))
    assert averaging._average_model.module.prompted_lm.lm is lm


def test_text_without_labels_is_judged_by_perplexity_and_token_accuracy(
    lm: FrozenLM, moods: Path, tmp_path: Path
) -> None:
    data = data_of(lm, moods)
    module = module_of(lm, data)
    text = SoftPromptModule(module.prompted_lm, label_words=None)
    measured = trainer_of(tmp_path).validate(text, data, verbose=False)[0]
    assert measured["val/perplexity"] == pytest.approx(
        float(torch.tensor(measured["val/loss"]).exp()), rel=1e-4
    )
    assert 0 <= measured["val/token_accuracy"] <= 1
