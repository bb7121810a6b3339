"""Train a soft prompt on a frozen LM: python -m ptlit.train experiment=ptuning_lstm"""

import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from ptlit import baseline
from ptlit.build import Training, build, build_judge, make, options_of
from ptlit.callbacks.answers import Answers
from ptlit.callbacks.chat_report import ChatReport
from ptlit.callbacks.test_report import TestReport
from ptlit.cards import adapter_card
from ptlit.command import command
from ptlit.config import AT_THE_ROOT, check
from ptlit.curves import plot_curves
from ptlit.data import ClassificationData
from ptlit.fingerprint import fingerprint
from ptlit.going_on import check_going_on
from ptlit.interrupt import interrupted_between_steps
from ptlit.learning_rate import AUTO, find_learning_rate
from ptlit.lora import write_lora
from ptlit.mistake import UserMistake
from ptlit.peft_format import write_adapter
from ptlit.quiet import quiet
from ptlit.report import write_report
from ptlit.run import check_base_model, lora_fingerprint, read_config
from ptlit.run_folder import RunFolder
from ptlit.slurm import requeued_before_the_end
from ptlit.spawned import mistakes_of_processes
from ptlit.summary import from_here, method, parameter_counts, print_start, print_summary
from ptlit.whole_config import completed


@requeued_before_the_end()
def train(cfg: DictConfig) -> float:
    """One run, start to finish; the validation score of its best checkpoint, which sweepers maximise or
    minimise.
    """
    check(cfg)
    quiet()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    again = cfg.resume is None and holds_a_run_to_begin_again(folder)
    training = build(cfg)
    if again:
        folder.clear()
    if cfg.resume is not None:
        before = RunFolder(Path(cfg.resume))
        check_base_model(before, training.lm)
        check_going_on(before, training.module, cfg.optim["_target_"], training.trainer)
        if not folder.is_of(before):
            if holds_a_run_to_begin_again(folder):
                folder.clear()
            folder.take_best_of(before)
    folder.set_curves_aside()
    metrics = parameter_counts(training.module)
    if training.trainer.is_global_zero:
        print_start(training, folder, HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task)
    if cfg.optim.lr == AUTO:
        cfg = cfg.copy()  # what was asked for stays with who asked
        cfg.optim.lr = metrics["learning_rate/chosen"] = learning_rate(cfg, training, folder)
        training.module.make_optimizer = make(cfg.optim)
    leave_what_opening_needs(folder, cfg, training)
    log_settings(training, cfg, {})

    metrics |= fit(training, folder, resume_point(cfg))
    if not alone_from_here(training.trainer):
        return math.nan
    metrics |= best_on_val(training)
    if cfg.test:
        metrics |= judge_on_test(training, folder) | baselines(training)
    finish(training, cfg, folder, metrics)
    return metrics[str(training.checkpoint.monitor)]


def holds_a_run_to_begin_again(folder: RunFolder) -> bool:
    """What another run has left there would be judged and exported as this one's. A sweep begins a job again
    that has not ended or has changed; anybody else is asked.
    """
    if not folder.holds_a_run() or getattr(rank_zero_only, "rank", None):
        return False
    if HydraConfig.get().mode == RunMode.RUN:
        place = from_here(folder.root)
        raise UserMistake(
            f"hydra.run.dir={place} holds a run: resume={place} goes on with it, another folder begins anew."
        )
    return True


def leave_what_opening_needs(folder: RunFolder, cfg: DictConfig, training: Training) -> None:
    """What the run was given, what it found in its data, and which LM it learned before."""
    folder.write_config(completed(cfg, training.data))
    lm = training.lm
    frozen_lora = lora_fingerprint(lm)
    folder.write_base_model(lm.name, lm.revision, fingerprint(lm.base.model), frozen_lora)
    if frozen_lora is not None:
        write_lora(folder.lora, lm)


def learning_rate(cfg: DictConfig, training: Training, folder: RunFolder) -> float:
    """What optim.lr=auto comes to; a resumed run keeps what it began with."""
    if cfg.resume is not None:
        return float(read_config(RunFolder(Path(cfg.resume))).optim.lr)
    module, data, trainer = training.module, training.data, training.trainer
    folder.root.mkdir(parents=True, exist_ok=True)
    rate = find_learning_rate(module, data, make(cfg.optim), trainer, folder.learning_rate)
    print(f"optim.lr=auto is {rate:g} here: {from_here(folder.learning_rate)}\n", flush=True)
    return rate


def resume_point(cfg: DictConfig) -> str | None:
    return None if cfg.resume is None else str(RunFolder(Path(cfg.resume)).last_checkpoint())


def fit(training: Training, folder: RunFolder, resume: str | None) -> dict[str, float]:
    began = time.perf_counter()
    try:
        with interrupted_between_steps(), mistakes_of_processes():
            training.trainer.fit(
                training.module, datamodule=training.data, ckpt_path=resume, weights_only=True
            )
    except (SystemExit, KeyboardInterrupt, UserMistake, OSError) as end:
        if folder.has_checkpoint():
            print(f"\n{how_to_go_on(folder, isinstance(end, UserMistake))}", flush=True)
        raise
    seconds = time.perf_counter() - began
    figures = ("speed/examples_per_second", "memory/peak_mb")
    logged = training.trainer.callback_metrics
    return {name: float(logged[name]) for name in figures if name in logged} | {"seconds/fit": seconds}


def alone_from_here(trainer: L.Trainer) -> bool:
    """One process judges and writes what the run leaves; where others are commands too they have ended."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return trainer.is_global_zero


def how_to_go_on(folder: RunFolder, after_a_mistake: bool) -> str:
    command = f"python -m ptlit.train {shlex.quote(f'resume={folder.root}')}"
    if after_a_mistake:
        return f"The last checkpoint is kept. To go on from it: {command} optim.lr=<a lower one>"
    return f"Interrupted. To go on: {command}"


def best_on_val(training: Training) -> dict[str, float]:
    """Back to the best checkpoint, and what it reached on the validation split."""
    validated: dict[str, float] = {}
    if best := training.checkpoint.best_model_path:  # else never validated: the prompt as it is
        checkpoint = torch.load(best, map_location="cpu", weights_only=True)
        training.module.load_state_dict(checkpoint["state_dict"])
        validated = checkpoint["validated"]
    if validated:
        return validated
    return dict(judge(training).validate(training.module, datamodule=training.data, verbose=False)[0])


def judge_on_test(training: Training, folder: RunFolder) -> dict[str, float]:
    answers = Answers()
    callbacks: list[Callback] = training.trainer.callbacks  # type: ignore[attr-defined]
    reports = [each for each in callbacks if isinstance(each, TestReport | ChatReport)]
    boards = [each for each in training.trainer.loggers if isinstance(each, TensorBoardLogger)]
    tester = judge(training, [answers, *reports], boards)
    tested = dict(tester.test(training.module, datamodule=training.data, verbose=False)[0])
    if training.trainer.is_global_zero:
        write_report(folder.report, training.module, training.data, "test", tested, answers.probabilities)
    return tested


def judge(training: Training, reports: Sequence[Callback] = (), boards: Sequence[Logger] = ()) -> L.Trainer:
    accelerator = "cpu" if training.trainer.strategy.root_device.type == "cpu" else "auto"
    return build_judge(accelerator, training.trainer.precision, [TQDMProgressBar(), *reports], boards)


def baselines(training: Training) -> dict[str, float]:
    found = {"hard_prompt": baseline.hard_prompt(training.lm, training.data, judge(training))}
    if isinstance(training.data, ClassificationData):
        found |= baseline.majority(training.data)
    return {
        f"baseline/{name}/{key}": value for name, scores in found.items() for key, value in scores.items()
    }


def finish(training: Training, cfg: DictConfig, folder: RunFolder, metrics: dict[str, float]) -> None:
    """Everything that the run leaves behind."""
    folder.write_metrics(metrics)
    prompts, lm, front = training.module.prompts, training.lm, training.module.prompted_lm.front
    adapters = folder.adapters(len(prompts))
    for adapter, prompt in zip(adapters, prompts, strict=True):
        write_adapter(adapter, prompt, lm.shape, lm.name, lm.revision, front)
    if training.lm.trained:
        write_lora(folder.lora, training.lm)
    data = training.data
    template = data.template if isinstance(data, ClassificationData) else None
    words = data.label_words if isinstance(data, ClassificationData) else None
    beside = f"../{folder.lora.name}" if lm.has_lora else None
    card = adapter_card(prompts[0], front, template, words, completed(cfg, data), metrics, beside)
    for adapter in adapters:
        (adapter / "README.md").write_text(card, encoding="utf-8")
    plot_curves(folder.curve_files(), folder.curves, metrics, method(HydraConfig.get().runtime.choices))
    log_settings(training, cfg, metrics)
    print_summary(training, folder, metrics)


def log_settings(training: Training, cfg: DictConfig, metrics: dict[str, float]) -> None:
    """The HPARAMS entry: opened at the start, so that a failed run is listed; closed with final metrics."""
    settings = {
        f"{group}.{key}": value
        for group in ("model", "lora", "data", "prompt", "optim", "schedule", "loss", "distill", "trainer")
        if cfg.get(group)
        for key, value in options_of(cfg[group]).items()
        if isinstance(value, (int, float, str, bool)) and not key.startswith("_")
    } | {"prompt.method": type(training.module.prompted_lm.prompt).__name__}
    settings |= {key: cfg[key] for key in AT_THE_ROOT}
    judged = "test" if cfg.test else "val"
    headline = [f"{judged}/{name}" for name in training.module.metrics_of(judged).headline]
    shown = [*headline, str(training.checkpoint.monitor)]
    for logger in training.trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings, {name: metrics.get(name, float("nan")) for name in shown})
            logger.save()


main = command("train", train)

if __name__ == "__main__":
    main()
