"""The keys and values of a prompt in a file that any program with transformers can put into its cache."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import DynamicCache

from ptlit.fingerprint import fingerprint
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix

FILE = "prefix.safetensors"  # keys.0, values.0, keys.1, ...: (1, K, P, D) each, without the text


def write_prefix(folder: Path, prefix: Prefix, lm: FrozenLM) -> None:
    layers = enumerate(zip(prefix.keys, prefix.values, strict=True))
    tensors = {
        f"{name}.{index}": tensor[None].detach().cpu().contiguous()
        for index, pair in layers
        for name, tensor in zip(("keys", "values"), pair, strict=True)
    }
    save_file(
        tensors,
        folder / FILE,
        metadata={"format": "pt", "base_model": lm.name, "fingerprint": fingerprint(lm.model)},
    )


def load_prefix(folder: Path, lm: FrozenLM) -> Prefix:
    """On the LM's device, for `PromptedLM.generate(..., prefix=...)` and its siblings."""
    path = folder / FILE
    try:
        with safe_open(path, framework="pt", device=str(lm.device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            trained = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserMistake(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    wanted = [f"{name}.{index}" for index in range(len(tensors) // 2) for name in ("keys", "values")]
    if not tensors or set(wanted) != set(tensors):
        raise UserMistake(f"{path} is no prefix file: it holds {', '.join(sorted(tensors)) or 'nothing'}.")
    if trained.get("fingerprint") != fingerprint(lm.model):
        raise UserMistake(f"{path} was made for {trained.get('base_model')}; {lm.name} has other weights.")
    keys, values = (tuple(tensors[name][0] for name in wanted[start::2]) for start in (0, 1))
    return Prefix(keys, values)


def load_cache(folder: str | Path, lm: FrozenLM, batch_size: int = 1) -> DynamicCache:
    """An ordinary cache that begins with the prefix: `generate(..., past_key_values=...)` goes on from it.

    The prefix of virtual tokens that stand behind BOS has BOS too, and the text then goes in without it.
    """
    with torch.no_grad():
        return load_prefix(Path(folder), lm).growing_cache(lm.model, batch_size)
