"""A LoRA (Hu et al. 2021) on the frozen LM: one that PEFT trained, or one that is trained with the prompt.

PEFT puts it in, into a copy of the LM that shares all other weights: the LM that is loaded once per process
stays as it was, for a sweep's next job and for the baseline.
"""

import copy
import json
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.whole_file import replaced

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # how PEFT's names begin in a file
READ = {  # of an adapter's config: what says where the matrices stand and how they are scaled
    "alpha_pattern",
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
}
REFUSED = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")


class Lora(ABC):
    """Interface."""

    trains: bool

    @abstractmethod
    def put_into(self, model: PreTrainedModel) -> None: ...


@dataclass(frozen=True)
class FrozenLora(Lora):
    """As PEFT wrote it into the folder `path`; part of the frozen LM from then on."""

    path: str
    trains = False

    def __post_init__(self) -> None:
        need_peft()
        read_config(Path(self.path))

    def put_into(self, model: PreTrainedModel) -> None:
        from peft import LoraConfig, set_peft_model_state_dict

        folder = Path(self.path)
        options = {key: value for key, value in read_config(folder).items() if key in READ}
        try:
            tensors = load_file(folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise UserMistake(f"{folder / WEIGHTS} is broken: {' '.join(str(error).split())}.") from error
        inject(LoraConfig(**options, lora_dropout=0.0), model, f"lora.path={folder}")
        try:
            found: Any = set_peft_model_state_dict(
                model, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
            )
        except RuntimeError as error:
            raise UserMistake(f"lora.path={folder} was trained on an LM of another shape.") from error
        missing = [name for name in found.missing_keys if "lora_" in name]
        if missing or found.unexpected_keys:
            said = f"{missing[0]} is missing" if missing else f"{found.unexpected_keys[0]} is unknown"
            raise UserMistake(f"lora.path={folder} does not fit this LM: {said}.")


@dataclass(frozen=True)
class TrainedLora(Lora):
    """New: without effect at its start, and trained with the prompt by the same optimizer."""

    r: int = 8
    alpha: int = 16
    target_modules: str | list[str] = "all-linear"
    dropout: float = 0.0
    trains = True

    def __post_init__(self) -> None:
        need_peft()
        for key, value in (("r", self.r), ("alpha", self.alpha)):
            if value < 1:
                raise UserMistake(f"lora.{key}={value} must be 1 or more.")
        if not 0 <= self.dropout < 1:
            raise UserMistake(f"lora.dropout={self.dropout} must be from 0 up to, not including, 1.")

    def put_into(self, model: PreTrainedModel) -> None:
        from peft import LoraConfig

        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            target_modules=self.target_modules,
            lora_dropout=self.dropout,
            task_type="CAUSAL_LM",
        )
        inject(config, model, f"lora.target_modules={self.target_modules}")


def with_lora(lm: FrozenLM, lora: Lora) -> FrozenLM:
    """`lm` itself stays without it."""
    model = lm.copied_model()
    lora.put_into(model)
    return lm.changed(model, trains_lora=lora.trains)


def need_peft() -> None:
    if find_spec("peft") is None:
        raise UserMistake("lora needs a package more: pip install peft.")


def inject(config: Any, model: PreTrainedModel, said: str) -> None:
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # GPT-2's; PEFT puts it right
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise UserMistake(f"{said} cannot be put into this LM: {reason}") from error
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            # as the prompt, and unlike an LM in bfloat16: small steps would be lost
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def tuned_weights(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Those that a LoRA stands beside."""
    return [each for _, layer in tuned_layers(model) for each in layer.get_base_layer().parameters()]


def merge(model: PreTrainedModel) -> None:
    """The LoRA goes into the weights that it stands beside, and nothing else of it is left."""
    for name, layer in tuned_layers(model):
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    del model.peft_config


def tuned_layers(model: PreTrainedModel) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]


def read_config(folder: Path) -> dict[str, Any]:
    """What the folder says it holds, told without reading a tensor."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserMistake(f"lora.path={folder} is no adapter of PEFT's: it has no {name}.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, bias = config["peft_type"], config.get("bias", "none")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserMistake(f"{folder / CONFIG} is broken, or no adapter's config.") from error
    if kind != "LORA":
        raise UserMistake(f"lora.path={folder} holds {kind}, which is no LoRA.")
    if more := [key for key in REFUSED if config.get(key)] or (["bias"] if bias != "none" else []):
        raise UserMistake(
            f"lora.path={folder} has trained more than LoRA matrices ({more[0]}): merge it first."
        )
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool) and start != "gaussian":
        raise UserMistake(f"lora.path={folder} has changed the LM's weights too ({start}): merge it first.")
    return config


def write_lora(folder: Path, lm: FrozenLM) -> None:
    """A folder that `PeftModel.from_pretrained` loads; each file is written under another name first."""
    from peft import get_peft_model_state_dict

    config = copy.deepcopy(lm.model.peft_config["default"])
    config.inference_mode, config.base_model_name_or_path = True, lm.name
    config.task_type, config.revision = "CAUSAL_LM", lm.revision
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(lm.model)
    with replaced(folder / WEIGHTS) as part:
        whole = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, part, metadata={"format": "pt"})
    options = {key: sorted(each) if isinstance(each, set) else each for key, each in config.to_dict().items()}
    with replaced(folder / CONFIG) as part:
        part.write_text(json.dumps(options, indent=2, sort_keys=True) + "\n", encoding="utf-8")
