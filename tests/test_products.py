"""A frozen LM computes by oneDNN what it would compute by PyTorch; where it must not, it does not."""

import pickle
import resource
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES, tiny_lm
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptlit import products
from ptlit.products import PLAIN, available, plainly, product, quicken, restore

pytestmark = pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN")


def quick_lm(architecture: str, spread: float | None = None) -> PreTrainedModel:
    """On whatever processor."""
    model = tiny_lm(architecture, spread=spread).model
    quicken(model)
    return model


def logits_and_gradient(model: nn.Module, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    embeddings = embeddings.clone().requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits).to(logits.dtype)
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), embeddings)[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_gradients_are_those_of_float64(architecture: str) -> None:
    model = quick_lm(architecture, spread=0.3)
    quick = [module for module in model.modules() if type(module) in PLAIN]
    assert len(quick) >= 9  # the layers of two blocks, and the head
    embeddings = torch.randn(3, 7, 32)
    found, plain = logits_and_gradient(model, embeddings), None
    with plainly(model):
        assert not any(type(module) in PLAIN for module in model.modules())
        plain = logits_and_gradient(model, embeddings)
    assert all(type(module) in PLAIN for module in quick)
    exact = logits_and_gradient(model.double(), embeddings.double())
    for one, usual, right in zip(found, plain, exact, strict=True):
        error, usual_error = (float((each - right).abs().max()) for each in (one, usual))
        assert error <= 1e-5 * float(right.abs().max()) + 3 * usual_error


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_gradient(bias: bool) -> None:
    inputs, weight = torch.randn(2, 3, 5, requires_grad=True), torch.randn(4, 5)
    offset = torch.randn(4) if bias else None
    strange = torch.ones(()).expand(2, 3, 4)  # a gradient that no memory holds
    for rows in (inputs, inputs.transpose(0, 1)):
        other = nn.functional.linear(rows, weight, offset)
        mine = product(rows, weight, offset)
        torch.testing.assert_close(mine, other)
        gradients = [torch.autograd.grad(each, inputs, strange.reshape(each.shape)) for each in (mine, other)]
        torch.testing.assert_close(*gradients)


def test_a_weight_that_learns_gets_its_gradient() -> None:
    layer = quick_lm("llama").model.layers[0].mlp.up_proj.requires_grad_(True)
    layer(torch.randn(2, 32)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_other_types_and_autocast_are_left_to_pytorch() -> None:
    model = quick_lm("llama")
    layer = model.model.layers[0].mlp.up_proj
    rows = torch.randn(2, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(rows).dtype == torch.bfloat16
    assert model.bfloat16().model.layers[0].mlp.up_proj(rows.bfloat16()).dtype == torch.bfloat16


def test_a_model_can_be_copied_and_restored() -> None:
    model = quick_lm("gpt2")
    ids = torch.arange(3, 9)[None]
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy(ids).logits, model(ids).logits)
    restore(copy)
    before = {type(module) for module in copy.modules()}
    quicken(copy)
    assert {type(module) for module in copy.modules()} != before


@pytest.mark.parametrize(
    ("maker", "capability", "quick"),
    [("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False)],
)
def test_products_stay_with_mkl_where_it_is_the_faster_one(
    maker: str, capability: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(products, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    model = tiny_lm("llama").model
    assert any(type(module) in PLAIN for module in model.modules()) == quick
    with plainly(model):
        assert not any(type(module) in PLAIN for module in model.modules())
    assert any(type(module) in PLAIN for module in model.modules()) == quick


def test_lengths_that_do_not_come_again_leave_no_memory_behind() -> None:
    """A megabyte and more for each length, as long as their code is kept."""
    weights = [torch.randn(640, 192), torch.randn(192, 640), torch.randn(192, 192)]

    def products_of(lengths: range) -> None:
        for length in lengths:
            for weight in weights:
                product(torch.randn(length, weight.shape[1]), weight)
                product(torch.randn(length, weight.shape[0]), weight.t())

    products_of(range(100, 130))
    before = resident_mb()
    products_of(range(130, 250))
    assert resident_mb() - before < 50


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
