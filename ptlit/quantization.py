"""Frozen weights in fewer bits, by name: what transformers can do while it loads a model.

Only the LM's large matrices change; the prompt stays in float32, and gradients pass through to it.
"""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from ptlit.mistake import UserMistake

Quantization = Literal["int8", "int4", "llm_int8", "nf4"]
PACKAGES = {"int8": "torchao", "int4": "torchao", "llm_int8": "bitsandbytes", "nf4": "bitsandbytes"}


def quantization_config(name: str) -> Any:
    """int8 and int4 keep activations as they are; llm_int8 and nf4 are meant for GPUs."""
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
