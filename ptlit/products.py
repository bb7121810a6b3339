"""The matrix products of a frozen LM on a CPU, by oneDNN.

PyTorch leaves them to MKL, which on processors that are not Intel's does without AVX-512: on an AMD EPYC
that has it, MKL takes 2.2 times as long. On Intel's, and on an AMD EPYC that has AVX2 alone, it is the faster
one and they stay with it. A frozen weight needs no gradient, so that of its input is all there is to write.
Nothing is copied, and where oneDNN has no say (GPUs, other types, autocast, a weight that learns) PyTorch
does what it always does.
"""

import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Every length of a batch is a shape with code of its own, nearly half a megabyte for each product. oneDNN
# would keep a thousand of them, and PyTorch, in a store of its own, a thousand too.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")


CPUINFO = Path("/proc/cpuinfo")


def quicken(model: PreTrainedModel) -> None:
    """Its linear layers compute by oneDNN from now on, wherever that is right."""
    for module in model.modules():
        quick = QUICK.get(type(module))
        if quick is not None and type(module.weight.data) is Tensor:  # no quantised weight
            module.__class__ = quick


def restore(model: PreTrainedModel) -> list[nn.Module]:
    """Its linear layers are as transformers made them. Those that were not."""
    quick = [module for module in model.modules() if type(module) in PLAIN]
    for module in quick:
        module.__class__ = PLAIN[type(module)]
    return quick


@contextmanager
def plainly(*models: PreTrainedModel) -> Iterator[None]:
    """Inside, they compute as they will elsewhere."""
    quick = [module for model in models for module in restore(model)]
    try:
        yield
    finally:
        for module in quick:
            module.__class__ = QUICK[type(module)]


class QuickLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not by_onednn(input, self.weight):
            return super().forward(input)
        return product(input, self.weight, self.bias)


class QuickConv1D(Conv1D):
    """GPT-2's linear layer, whose weight lies on its side."""

    def forward(self, x: Tensor) -> Tensor:
        if not by_onednn(x, self.weight):
            return super().forward(x)
        return product(x, self.weight.t(), self.bias)


QUICK: dict[type, type] = {nn.Linear: QuickLinear, Conv1D: QuickConv1D}
PLAIN = {quick: plain for plain, quick in QUICK.items()}


def by_onednn(inputs: Tensor, weight: Tensor) -> bool:
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.numel() > 0
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
    )


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`inputs` (..., I) and `weight` (O, I), which has no gradient, to (..., O)."""
    if torch.compiler.is_compiling():
        return torch.ops.ptlit.product(inputs, weight, bias)  # type: ignore[no-any-return]
    if not (inputs.requires_grad and torch.is_grad_enabled()):
        return _onednn(inputs, weight, bias)
    return _Product.apply(inputs, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # it never changes, so no version of it need be kept
        return _onednn(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return product(gradient, ctx.weight.t()), None, None


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs.contiguous(), weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _shaped(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], weight.shape[0])


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.weight = inputs[1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.ptlit.product(gradient, ctx.weight.t(), None), None, None


# The same as an operator, which torch.compile takes as it is, asking for nothing but the shape. For everybody
# it would do, but for an operator of Python's autograd takes twice as long around each product.
_OPERATORS = torch.library.Library("ptlit", "DEF")
_OPERATORS.define("product(Tensor inputs, Tensor weight, Tensor? bias) -> Tensor")
_OPERATORS.impl("product", _onednn, "CPU")
torch.library.register_fake("ptlit::product", _shaped, lib=_OPERATORS)
torch.library.register_autograd("ptlit::product", _backward, setup_context=_remember, lib=_OPERATORS)


def faster_here() -> bool:
    """By the kind of processor, not by the clock: a run that goes on computes as it did."""
    return available() and (not torch.backends.mkl.is_available() or mkl_leaves_the_widest_alone())


def mkl_leaves_the_widest_alone() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and not made_by_intel()


def made_by_intel() -> bool:
    return "GenuineIntel" in (CPUINFO.read_text() if CPUINFO.is_file() else platform.processor())


@functools.cache
def available() -> bool:
    """The operator is PyTorch's own but not promised to stay, so it is tried; and without a random number,
    which a seeded run would miss.
    """
    try:
        inputs, weight, bias = (
            (torch.arange(30.0) / 7).view(2, 3, 5),
            torch.ones(4, 5).tril(),
            torch.arange(4.0),
        )
        found = _onednn(inputs, weight, bias), _onednn(inputs, weight.t().contiguous().t(), bias)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return all(torch.allclose(each, nn.functional.linear(inputs, weight, bias), atol=1e-5) for each in found)
