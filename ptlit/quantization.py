"""Frozen weights in fewer bits, by name: what transformers can do while it loads a model.

Only the LM's large matrices change; the prompt stays in float32, and gradients pass through to it.
"""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from ptlit.mistake import UserMistake

Quantization = Literal["int8", "int4", "llm_int8", "nf4"]
PACKAGES = {"int8": "torchao", "int4": "torchao", "llm_int8": "bitsandbytes", "nf4": "bitsandbytes"}


def quantization_config(name: str) -> Any:
    """Weights alone, but for llm_int8, which rounds activations too."""
    if name == "int4" and not torch.cuda.is_available():
        raise UserMistake(
            "model.quantization=int4 is converted on a GPU alone: give nf4, which has four bits too, or int8."
        )
    package = PACKAGES[name]
    if find_spec(package) is None:
        raise UserMistake(f"model.quantization={name} needs a package more: pip install {package}.")
    match name:
        case "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig())
        case "int4":
            from torchao.quantization import Int4WeightOnlyConfig

            return TorchAoConfig(Int4WeightOnlyConfig())
        case "llm_int8":
            return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def keep_gradients(model: nn.Module) -> None:
    """Where it can, bitsandbytes packs four-bit weights on a CPU for a product that has no way back."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
