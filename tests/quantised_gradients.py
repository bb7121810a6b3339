"""A program: gradients through a quantised LM, and through what its weights now are, in float32.

`python quantised_gradients.py FOLDER QUANTIZATION...` prints their cosines, a line for each quantisation and
method. On its own, for the packages that quantise slow down and litter every process that can import them.
"""

import sys

import torch
from methods import make_prompt
from tiny import padded_rows
from torch import Tensor, nn

from ptlit.lm import FrozenLM, load_lm
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.prompted_lm import PromptedLM


def meant(layer: nn.Module) -> Tensor | None:
    """The weight of a quantised layer, as numbers."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if hasattr(weight, "SCB"):
        held = weight if weight.CB is not None else layer.state
        return held.CB.float() * held.SCB[:, None] / 127
    return weight.dequantize() if hasattr(weight, "dequantize") and "Int8" in type(weight).__name__ else None


def gradient(lm: FrozenLM, method: str) -> Tensor:
    torch.manual_seed(0)
    ids, mask, labels = padded_rows()
    keep, targets = learned_positions(labels)
    prompted_lm = PromptedLM(lm, make_prompt(method, lm.shape)).eval()
    learned_token_loss(prompted_lm(ids, mask, keep), targets).backward()
    assert all(each.dtype == torch.float32 for each in prompted_lm.prompt.parameters())
    return torch.cat([each.grad.flatten() for each in prompted_lm.prompt.parameters()])


def told(folder: str, quantization: str) -> None:
    plain = load_lm(folder, dtype="float32").copied_model()
    quantised = load_lm(folder, dtype="float32", quantization=quantization)
    for name, layer in quantised.model.named_modules():
        if name.endswith("_proj"):
            weight = meant(layer)
            assert weight is not None, f"{name} is not quantised"
            plain.get_submodule(name).weight = nn.Parameter(weight)
    reference = FrozenLM(plain, quantised.tokenizer)
    for method in ("ptuning_mlp", "prefix_tuning"):
        cosine = torch.cosine_similarity(gradient(quantised, method), gradient(reference, method), dim=0)
        print("cosine", quantization, method, cosine.item())


if __name__ == "__main__":
    for each in sys.argv[2:]:
        told(sys.argv[1], each)
