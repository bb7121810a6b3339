"""A run folder, opened: its LM, its trained prompt, and how it reads texts. Training data stays untouched."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from ptlit.build import make, options_of
from ptlit.config import node_mistakes
from ptlit.data import ChatTemplate, LabelWords, Template
from ptlit.data.classification import listening
from ptlit.data.example import leading_tokens
from ptlit.ensemble import size_of
from ptlit.fingerprint import fingerprint
from ptlit.foreign import foreign_code
from ptlit.lm import FrozenLM
from ptlit.lora import with_lora
from ptlit.mistake import UserMistake
from ptlit.peft_format import check_tensors
from ptlit.prompt import SoftPrompt
from ptlit.prompted_lm import PromptedLM
from ptlit.run_folder import RunFolder

PROMPT, OTHERS, LM = "prompted_lm.prompt.", "others.", "prompted_lm.lm."  # a checkpoint's names begin so
NEEDED = ("seed", "data.max_length", "data.eval_batch_size", "data.on_bad_row")
PARTS = ("model", "prompt", "data")  # of a config: what it takes to read a text; and `lora`, if there is one


@dataclass
class Run:
    """`template` and `label_words` are None where the run learned text, not labels."""

    folder: RunFolder
    cfg: DictConfig
    lm: FrozenLM
    prompted_lm: PromptedLM  # in eval mode, on the LM's device
    template: Template | None
    label_words: LabelWords | None
    max_length: int
    others: Sequence[SoftPrompt] = ()  # of an ensemble

    @property
    def precision(self) -> Any:
        """Of the training, in Lightning's words."""
        return OmegaConf.select(self.cfg, "trainer.precision", default="32-true")


def open_run(
    path: str | Path,
    checkpoint: Literal["best", "last"] = "best",
    lm: str | FrozenLM | None = None,
    trust_code: bool = False,
    averages: bool = False,
) -> Run:
    """`lm` says where the LM lies now, if not where it lay in training, or is that LM, without LoRA. A run
    folder may come from a stranger: only with `trust_code` does it make code run that is not ptlit's. Only
    who `averages` what several prompts say is given an ensemble.
    """
    folder = RunFolder(Path(path))
    cfg = read_config(folder)
    check_parts(folder, cfg, trust_code)
    if size_of(cfg) > 1 and not averages:
        raise UserMistake(
            f"{path} is an ensemble of {size_of(cfg)} prompts: evaluate and predict answer with all of them, "
            f"one run at a time, and export takes one of them, as run={folder.adapter}; nothing else does."
        )
    state = read_checkpoint(folder, checkpoint)
    title = f"{folder.root} ({checkpoint}.ckpt)"
    check_size(folder, cfg, state)
    frozen = open_lm(folder, cfg, lm)
    check_base_model(folder, frozen)
    load_lora(frozen, tensors_of(state, LM), title)
    prompt = load_prompt(cfg, frozen, tensors_of(state, PROMPT), title)
    others = [
        load_prompt(cfg, frozen, tensors_of(state, f"{OTHERS}{place}."), title).to(frozen.device).eval()
        for place in range(size_of(cfg) - 1)
    ]
    template, label_words = reading(folder, cfg, frozen)
    slots = template.slots if template is not None else 0
    prompted_lm = PromptedLM(frozen, prompt, slots, leading(cfg, frozen, template))
    prompted_lm = prompted_lm.to(frozen.device).eval()
    return Run(folder, cfg, frozen, prompted_lm, template, label_words, cfg.data.max_length, others)


def check_size(folder: RunFolder, cfg: DictConfig, state: Mapping[str, Tensor]) -> None:
    held = 1 + len({name.split(".")[1] for name in state if name.startswith(OTHERS)})
    if held != size_of(cfg):
        raise UserMistake(
            f"{folder.config} says ensemble={size_of(cfg)} and its checkpoint holds {held} prompts: write "
            f"ensemble: {held} there."
        )


def read_config(folder: RunFolder) -> DictConfig:
    root = folder.root
    if not root.is_dir():
        raise UserMistake(f"run={root}: there is no such folder.")
    if not folder.config.is_file():
        runs = sorted(config.parent for config in root.glob("*/config.yaml"))
        if runs:
            raise UserMistake(
                f"run={root} holds {len(runs)} runs, of a sweep perhaps: choose one, such as {runs[0]}."
            )
        raise UserMistake(f"run={root} is no run folder: it has no config.yaml.")
    try:
        cfg = OmegaConf.load(folder.config)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserMistake(f"{folder.config} cannot be read: {' '.join(str(error).split())}.") from error
    lacking = [part for part in PARTS if not OmegaConf.is_dict(OmegaConf.select(cfg, part))]
    lacking = lacking or [key for key in NEEDED if OmegaConf.select(cfg, key) is None]
    if lacking or not isinstance(cfg, DictConfig):
        raise UserMistake(f"{folder.config} lacks {' and '.join(lacking)}: it is no whole config of a run.")
    return cfg


def check_parts(folder: RunFolder, cfg: DictConfig, trust_code: bool) -> None:
    """Before any of it is imported or built."""
    mistakes = []
    for part in (*PARTS, "lora") if cfg.get("lora") else PARTS:
        node = options_of(cfg[part])
        node.pop("init", None)  # where a prompt started is past, and may be gone
        foreign = [] if trust_code else foreign_code(part, node)
        if foreign:
            raise UserMistake(
                f"{folder.config}: {part} runs code that is not part of ptlit ({foreign[0]}): give "
                "trust_code=true if you trust it."
            )
        mistakes += node_mistakes(part, node)
    if mistakes:
        raise UserMistake(f"{folder.config}: {' '.join(mistakes)}")


def read_checkpoint(folder: RunFolder, name: str) -> dict[str, Tensor]:
    """The tensors of the prompt, and of a LoRA that was trained with it."""
    state: dict[str, Tensor] = read_whole_checkpoint(folder, name)["state_dict"]
    return state


def read_whole_checkpoint(folder: RunFolder, name: str) -> dict[str, Any]:
    path = folder.checkpoints / f"{name}.ckpt"
    if not path.is_file():
        there = sorted(each.stem for each in folder.checkpoints.glob("*.ckpt"))
        instead = f" (there is checkpoint={there[0]})" if there else ""
        raise UserMistake(f"run={folder.root}: there is no checkpoint at {path}{instead}.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return {**checkpoint, "state_dict": checkpoint["state_dict"]}
    except (UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, OSError, ValueError) as error:
        raise UserMistake(f"{path} is broken, or no checkpoint of ptlit's.") from error


def tensors_of(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Under the names that they have in that part."""
    return {name.removeprefix(part): each for name, each in state.items() if name.startswith(part)}


def open_lm(folder: RunFolder, cfg: DictConfig, given: str | FrozenLM | None) -> FrozenLM:
    """With its LoRA, a frozen one from the run's own copy; what was trained of it is in the checkpoint."""
    moved = {"name_or_path": given} if isinstance(given, str) and given else {}
    lm: FrozenLM = given if isinstance(given, FrozenLM) else make(cfg.model, **moved)
    if not cfg.get("lora"):
        return lm
    return with_lora(lm, make(cfg.lora, **({"path": str(folder.lora)} if "path" in cfg.lora else {})))


def load_lora(lm: FrozenLM, state: dict[str, Tensor], title: str) -> None:
    check_tensors(title, lm, state)
    lm.load_state_dict(state)


def load_prompt(cfg: DictConfig, lm: FrozenLM, state: dict[str, Tensor], title: str) -> SoftPrompt:
    """All of its tensors, or a mistake that names those that differ."""
    options = options_of(cfg.prompt)
    options.pop("init", None)  # where it started is past
    prompt: SoftPrompt = make(options, shape=lm.shape)
    state = prompt.completed(state)
    check_tensors(title, prompt, state)
    prompt.load_state_dict(state)
    return prompt


def check_base_model(folder: RunFolder, lm: FrozenLM) -> None:
    """A run of before this was noted is believed."""
    if not folder.base_model.is_file():
        return
    try:
        trained = json.loads(folder.base_model.read_text(encoding="utf-8"))
        same = trained["fingerprint"] == fingerprint(lm.base.model)
        same_lora = trained.get("lora") == lora_fingerprint(lm)
    except (ValueError, KeyError, TypeError) as error:
        raise UserMistake(f"{folder.base_model} is broken: it should name the LM of the run.") from error
    if not same:
        raise UserMistake(
            f"{folder.root} was trained on {trained.get('name')} (weights {trained['fingerprint']}), and "
            f"{lm.name} has other weights ({fingerprint(lm.base.model)})."
        )
    if not same_lora:
        raise UserMistake(f"{folder.root} was trained with another frozen LoRA, or with none.")


def lora_fingerprint(lm: FrozenLM) -> str | None:
    """Of a frozen one: that too the prompt has learned before."""
    return fingerprint(lm.model, "lora_") if lm.has_lora and not lm.trained else None


def reading(folder: RunFolder, cfg: DictConfig, lm: FrozenLM) -> tuple[Template | None, LabelWords | None]:
    """How a classifying run shows a text to the LM, and what it listens for."""
    if "label_column" not in cfg.data:
        return None, None
    if not cfg.data.get("label_words"):
        raise UserMistake(
            f"{folder.config} does not name the labels (data.label_words), as those of an older ptlit: "
            "write them there, such as {bad: ' bad', good: ' good'}, in alphabetical order."
        )
    if missing := [key for key in ("template", "text_column") if cfg.data.get(key) is None]:
        raise UserMistake(f"{folder.config} lacks data.{missing[0]}: it is no whole config of a run.")
    template, words = Template(cfg.data.template), options_of(cfg.data.label_words)
    of_names = {str(name): word if isinstance(word, list) else str(word) for name, word in words.items()}
    calibrate = bool(cfg.data.get("calibrate"))
    return template, listening(template, list(of_names), of_names, lm.tokenizer, calibrate)


def leading(cfg: DictConfig, lm: FrozenLM, template: Template | None) -> list[int]:
    """What stands before the virtual tokens; nothing in runs of before this could be chosen."""
    if cfg.data.get("before_bos", True):
        return []
    if template is not None:
        return leading_tokens(lm.tokenizer)
    data = options_of(cfg.data)
    return ChatTemplate(lm.tokenizer, data.get("chat_template"), data.get("template_options")).leading
