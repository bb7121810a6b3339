"""PEFT in a plain loop: the same method with the same values; and its LoRA, which is something else."""

from collections.abc import Callable
from typing import Any, cast

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn

from ptlit.benchmark.engines import PlainLoop, Setup
from ptlit.benchmark.engines.padded import PaddedLoss
from ptlit.prompt import PrefixProjection, SoftPrompt

CONFIGS: dict[str, Callable[..., PeftConfig]] = {
    "PROMPT_TUNING": PromptTuningConfig,
    "P_TUNING": PromptEncoderConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
}


def peft(setup: Setup) -> PlainLoop:
    model = peft_model(setup)
    return PlainLoop(model, PaddedLoss(setup.lm, model), learned_by(model), setup.optimizer)


def lora(setup: Setup) -> PlainLoop:
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    model = cast(nn.Module, get_peft_model(setup.plain_model, config))
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return PlainLoop(model, PaddedLoss(setup.lm, model), learned, setup.optimizer)


def peft_model(setup: Setup) -> PeftModel:
    """PEFT's encoder with our prompt's values: structure and names of the two are the same."""
    assert setup.prompt is not None
    model = cast(PeftModel, get_peft_model(setup.plain_model, peft_config(setup.prompt)))
    encoder = model.prompt_encoder["default"]
    encoder.load_state_dict(dict(setup.prompt.named_parameters()))
    encoder.to(setup.lm.device)
    return model


def peft_config(prompt: SoftPrompt) -> PeftConfig:
    options: dict[str, Any] = {**prompt.peft_options(), "num_virtual_tokens": prompt.num_virtual_tokens}
    if isinstance(prompt, PrefixProjection):
        options["prefix_projection"] = True  # PEFT trains it too; only a finished adapter does without
    return CONFIGS[prompt.peft_type](task_type="CAUSAL_LM", **options)


def learned_by(model: PeftModel) -> dict[str, nn.Parameter]:
    return dict(model.prompt_encoder["default"].named_parameters())
