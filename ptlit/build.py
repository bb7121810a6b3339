"""From config to objects: the only place that instantiates; live things are passed in plain sight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ptlit.callbacks.best_checkpoint import BestCheckpoint
from ptlit.data import TextData
from ptlit.ensemble import size_of
from ptlit.lm import FrozenLM
from ptlit.lora import with_lora
from ptlit.metrics import LabelMetrics, TextMetrics
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.peft_format import adapter_folders, read_adapter, read_config
from ptlit.prompt import SoftPrompt
from ptlit.prompt.init import COMMON, FROM_DATA, STARTS, Task, start_prompt
from ptlit.prompted_lm import PromptedLM
from ptlit.rows_seen import rows_seen

TEXTS_TRIED = 4  # by the start that is nearest to no prompt
ASIDE = 0.5  # of how its words spread: how far from the start the other prompts of an ensemble have theirs


@dataclass
class Training:
    """Everything one run needs, ready to fit."""

    lm: FrozenLM
    data: TextData[Any]
    module: SoftPromptModule
    trainer: L.Trainer
    checkpoint: ModelCheckpoint


def build(cfg: DictConfig) -> Training:
    callbacks: dict[str, Any] = {
        str(name): make(node) for name, node in (cfg.get("callbacks") or {}).items() if node
    }
    if "checkpoint" not in callbacks:
        raise UserMistake(
            "callbacks.checkpoint is missing: the best checkpoint is what is tested and exported."
        )
    if not isinstance(callbacks["checkpoint"], BestCheckpoint):
        raise UserMistake(
            "callbacks.checkpoint must be a ptlit.callbacks.best_checkpoint.BestCheckpoint: its best.ckpt is "
            "what is tested and exported. Add another beside it, as +callbacks.mine={_target_: ...}."
        )
    loggers: list[Logger] = [make(node) for node in (cfg.get("logger") or {}).values() if node]
    trainer = build_trainer(cfg, list(callbacks.values()), loggers)
    lm: FrozenLM = make(cfg.model)
    if node := OmegaConf.select(cfg, "lora"):
        lm = with_lora(lm, make(node))
    data: TextData[Any] = make(cfg.data, tokenizer=lm.tokenizer, seed=cfg.seed)
    data.setup()
    module = build_module(cfg, lm, data)
    check_room(module.prompted_lm, data.max_length)
    check_monitors(callbacks, module)
    validate_once_at_least(trainer, len(data.train_dataloader()))
    return Training(lm, data, module, trainer, callbacks["checkpoint"])


def build_trainer(cfg: DictConfig, callbacks: list[Callback], loggers: list[Logger]) -> L.Trainer:
    """Before the LM, which takes longer to load than Lightning to object."""
    try:
        return make(cfg.trainer, callbacks=callbacks, logger=loggers)
    except InstantiationException as wrapped:
        if isinstance(wrapped.__cause__, MisconfigurationException | ValueError):
            raise UserMistake(f"trainer: {str(wrapped.__cause__).strip().splitlines()[0]}") from wrapped
        raise


def build_judge(
    accelerator: str, precision: Any, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()
) -> L.Trainer:
    """One process, whatever trained: no row is judged twice, and the training's log ends with it."""
    return L.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        logger=list(loggers),
        callbacks=list(callbacks),
        enable_progress_bar=any(isinstance(each, ProgressBar) for each in callbacks),
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def judging_accelerator(cfg: DictConfig, device: str | None) -> str:
    """Lightning's word for `device`; for None that of the training."""
    if device == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserMistake("device=gpu: no GPU is found here; leave it out, or give device=cpu.")
    return "cpu" if (device or OmegaConf.select(cfg, "trainer.accelerator")) == "cpu" else "auto"


def call(cfg: DictConfig) -> Any:
    """A command whose config names its function: called with all other keys."""
    options = options_of(cfg)
    return resolve_name(options.pop("_target_"))(**options)


def validate_once_at_least(trainer: L.Trainer, batches: int) -> None:
    """A run shorter than the interval between validations is validated at its end."""
    limit, interval = trainer.limit_train_batches, trainer.val_check_interval
    batches = min(limit, batches) if isinstance(limit, int) else int(batches * limit)  # of an epoch
    if not isinstance(interval, int) or not batches:
        return
    if trainer.check_val_every_n_epoch is not None:
        if interval > batches:
            raise UserMistake(
                f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch: with "
                "trainer.check_val_every_n_epoch give trainer.val_check_interval=1.0, which is once an epoch."
            )
        return
    epochs, steps = divmod(trainer.max_steps, math.ceil(batches / trainer.accumulate_grad_batches))
    lengths = [
        epochs * batches + steps * trainer.accumulate_grad_batches if trainer.max_steps > 0 else 0,
        trainer.max_epochs * batches if trainer.max_epochs and trainer.max_epochs > 0 else 0,
    ]
    length = min((each for each in lengths if each), default=0)
    if 0 < length < interval:
        trainer.val_check_interval = length


def make(node: DictConfig | dict[str, Any], **live: Any) -> Any:
    """What a node names, built. Hydra wraps every exception; a user's mistake is taken out again."""
    try:
        return instantiate(node, **live, _convert_="object")
    except InstantiationException as wrapped:
        if isinstance(wrapped.__cause__, UserMistake):
            raise wrapped.__cause__ from None
        raise


def options_of(node: DictConfig) -> dict[str, Any]:
    """A node as plain Python: config objects enter no class."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def build_module(cfg: DictConfig, lm: FrozenLM, data: TextData[Any]) -> SoftPromptModule:
    options = options_of(cfg.prompt)
    start = options.pop("init", None) or {}
    prompts: list[SoftPrompt] = [make(options, shape=lm.shape) for _ in range(size_of(cfg))]
    prompted_lm = PromptedLM(lm, prompts[0], data.slots, data.leading)
    if OmegaConf.select(cfg, "resume") is None:  # else it goes on, and what it began from may be gone
        put_at_start(prompts, prompted_lm, start, data)
    return SoftPromptModule(
        prompted_lm,
        optimizer=make(cfg.optim),
        schedule=make(cfg.schedule) if cfg.get("schedule") else None,
        label_words=data.label_words,
        loss=make(node) if (node := OmegaConf.select(cfg, "loss")) else None,
        kl_weight=cfg.kl_weight,
        class_weights=data.class_weights,
        teacher=make(node).reference(lm, data) if (node := OmegaConf.select(cfg, "distill")) else None,
        drop_virtual_tokens=OmegaConf.select(cfg, "drop_virtual_tokens", default=0.0),
        others=prompts[1:],
    )


def put_at_start(
    prompts: Sequence[SoftPrompt], prompted_lm: PromptedLM, start: dict[str, Any], data: TextData[Any]
) -> None:
    """Each at one of its own: prompts that start alike and learn from the same rows would stay alike."""
    origin, lm = start.get("from", "text"), prompted_lm.lm
    if origin in STARTS:
        text = start.get("text") or data.instruction
        leading = len(prompted_lm.front.leading)
        task = task_of(data, leading) if origin in FROM_DATA else None  # to count a large file takes time
        for place, prompt in enumerate(prompts):
            aside = ASIDE if place else 0.0
            start_prompt(prompt, lm, from_=origin, text=text, task=task, behind=data.leading, aside=aside)
        return
    folders = adapter_folders(Path(origin))
    if len(folders) < len(prompts):
        raise UserMistake(
            f"ensemble={len(prompts)} needs as many starts, and prompt.init.from={origin} is {len(folders)}: "
            "give another, such as prompt.init.from=text, or leave out the ensemble."
        )
    for prompt, folder in zip(prompts, folders, strict=False):
        said = [read_adapter(folder, prompt), *other_place(folder, prompted_lm), *rows_seen(folder, data)]
        print(" ".join(said), flush=True)


def other_place(folder: Path, prompted_lm: PromptedLM) -> list[str]:
    """What to say where the adapter's virtual tokens stood elsewhere."""
    there, here = read_config(folder)["leading"], prompted_lm.front.leading
    if there == here or prompted_lm.in_rows:
        return []
    if here:
        return ["There it stood before BOS, here behind it: data.before_bos=true puts it back."]
    return ["There it stood behind BOS, here before it."]


def task_of(data: TextData[Any], leading: int) -> Task:
    """What a prompt can start from in this data."""
    words, rows = data.label_words, data.encoded["train"]
    labels = [ids[:-1] if words.ends_with_eos else ids for ids in words.firsts] if words is not None else []
    return Task(labels, rows.common_tokens(COMMON), rows.texts(TEXTS_TRIED), leading)


def check_room(prompted_lm: PromptedLM, max_length: int) -> None:
    longest = prompted_lm.lm.shape.max_positions
    if longest is not None and prompted_lm.num_virtual_tokens + max_length > longest:
        raise UserMistake(
            f"prompt.num_virtual_tokens={prompted_lm.num_virtual_tokens} and data.max_length={max_length} "
            f"together exceed the {longest} tokens this LM can read: lower one of them."
        )


def check_monitors(callbacks: Mapping[str, Any], module: SoftPromptModule) -> None:
    """Labels and replies are measured by different numbers; Lightning would object after the first steps."""
    measured = [f"val/{name}" for name in module.metrics_of("val").names]
    of_others = {f"val/{name}" for kind in (LabelMetrics, TextMetrics) for name in kind.headline}
    for name, callback in callbacks.items():
        monitor, judges = getattr(callback, "monitor", None), name == "checkpoint"
        if monitor not in measured and (judges or monitor in of_others):
            suited = "default" if module.label_words is not None else "chat"
            instead = f", or give callbacks={suited}" if judges else ""
            raise UserMistake(
                f"callbacks.{name}.monitor={monitor} is not measured on this data, only"
                f" {', '.join(measured)}: choose one of these{instead}."
            )
