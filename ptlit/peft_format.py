"""PEFT's adapter folder, written from a trained prompt and read back.

PEFT needs one tensor, `prompt_embeddings`, and ignores the rest of the file: the prompt's own tensors
(encoder included) travel beside it under `ptlit.`, so that the same file can be trained further.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ptlit.lm import LMShape
from ptlit.mistake import UserMistake
from ptlit.prompt import EmbeddingPrompt, SoftPrompt
from ptlit.prompt.base import peft_rows

CONFIG, WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "ptlit."


def prompt_embeddings(prompt: SoftPrompt) -> Tensor:
    """What PEFT calls `prompt_embeddings`: (P, H), or (P, L * 2 * K * D) for the deep kind; without
    dropout.
    """
    training = prompt.training
    prompt.eval()
    with torch.no_grad():
        learned = prompt()
    prompt.train(training)
    rows = learned if isinstance(prompt, EmbeddingPrompt) else peft_rows(learned)
    return rows.detach().float().cpu().contiguous()


def adapter_config(
    prompt: SoftPrompt, shape: LMShape, base_model: str, revision: str | None = None
) -> dict[str, object]:
    deep = not isinstance(prompt, EmbeddingPrompt)
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": shape.num_kv_heads,
        "num_layers": shape.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.num_virtual_tokens,
        "peft_type": prompt.peft_type,
        "revision": revision,
        "task_type": "CAUSAL_LM",
        "token_dim": (shape.num_kv_heads or 0) * (shape.head_dim or 0) if deep else shape.hidden_size,
        **prompt.peft_options(),
    }


def write_adapter(
    folder: Path, prompt: SoftPrompt, shape: LMShape, base_model: str, revision: str | None = None
) -> None:
    """Each file is written under another name first: a crash leaves the old adapter whole."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = {OURS + name: tensor.detach().cpu().contiguous() for name, tensor in prompt.state_dict().items()}
    tensors = {"prompt_embeddings": prompt_embeddings(prompt), **ours}
    half = folder / (WEIGHTS + ".part")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, half, metadata={"format": "pt"})
    os.replace(half, folder / WEIGHTS)
    half = folder / (CONFIG + ".part")
    half.write_text(json.dumps(adapter_config(prompt, shape, base_model, revision), indent=2) + "\n")
    os.replace(half, folder / CONFIG)


def read_adapter(folder: Path, prompt: SoftPrompt) -> None:
    """Load one of our own adapters into `prompt`, all tensors or none."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(OURS)]  # noqa: SIM118
        state = {name.removeprefix(OURS): file.get_tensor(name) for name in names}
    expected = {name: tensor.shape for name, tensor in prompt.state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != expected:
        raise UserMistake(f"{folder} holds {sorted(state)}, which is not this prompt ({sorted(expected)}).")
    prompt.load_state_dict(state)
