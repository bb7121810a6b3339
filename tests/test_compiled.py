"""Layers by torch.compile: the same numbers, in training steps alone, and a sentence where it cannot be."""

from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor
from methods import make_prompt
from test_one_pass import gradients_of, members_of
from test_packing import PACKING
from tiny import padded_rows, tiny_lm
from torch import Tensor
from torch._dynamo.utils import counters

from ptlit.compiled import check_compiler
from ptlit.ensemble import Ensemble
from ptlit.lm import FrozenLM
from ptlit.lora import TrainedLora, with_lora
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.mistake import UserMistake
from ptlit.products import available, quicken, restore
from ptlit.prompted_lm import PromptedLM

pytestmark = [  # torch.compile's own, which it hides unless warnings are errors
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]


def loss_and_gradients(lm: FrozenLM, method: str, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
    torch.manual_seed(7)
    prompted_lm = PromptedLM(lm, make_prompt(method, lm.shape)).eval()
    ids, mask, labels = padded_rows(lengths)
    keep, targets = learned_positions(labels)
    loss = learned_token_loss(prompted_lm(ids, mask, keep), targets)
    learned = [*prompted_lm.prompt.parameters(), *lm.trained.values()]
    return loss.detach(), *torch.autograd.grad(loss, learned)


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(("wears_lora", "by_onednn"), [(False, True), (True, False)])
def test_a_step_is_what_it_was(wears_lora: bool, by_onednn: bool) -> None:
    lm = tiny_lm("llama", spread=0.3)
    restore(lm.model)
    if by_onednn and available():
        quicken(lm.model)
    if wears_lora:
        lm = with_lora(lm, TrainedLora(r=2))
    cases = [(method, rows) for method in ("ptuning_mlp", "prefix_tuning") for rows in ((14, 9, 5), (7, 20))]
    plain = [loss_and_gradients(lm, *case) for case in cases]
    before = graphs()
    lm.compile_layers(True)
    compiled = [loss_and_gradients(lm, *case) for case in cases]
    assert graphs() > before
    for found, right in zip(compiled, plain, strict=True):
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("architecture", PACKING)
def test_two_graphs_serve_all_layers_of_every_family(architecture: str) -> None:
    """One before attention and one after it."""
    check_compiler(torch.device("cpu"))  # which makes a graph of its own
    torch.compiler.reset()
    lm = tiny_lm(architecture, spread=0.3)
    plain, before = loss_and_gradients(lm, "ptuning_mlp", (14, 9, 5)), graphs()
    lm.compile_layers(True)
    compiled = loss_and_gradients(lm, "ptuning_mlp", (14, 9, 5))
    assert graphs() - before == 2
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("method", ["ptuning_mlp", "prefix_tuning"])
def test_several_prompts_learn_together_as_they_did(method: str) -> None:
    lm = tiny_lm("llama", spread=0.3)
    members = members_of(lm, method)
    ids, mask, labels = padded_rows((14, 9, 5))
    keep, targets = learned_positions(labels)
    plain = gradients_of(members, Ensemble(members).logits(ids, mask, keep), targets)
    before = graphs()
    lm.compile_layers(True)
    compiled = gradients_of(members, Ensemble(members).logits(ids, mask, keep), targets)
    assert graphs() > before
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_what_is_judged_or_generated_is_not_compiled() -> None:
    lm = tiny_lm("llama", spread=0.3)
    lm.compile_layers(True)
    prompted_lm = PromptedLM(lm, make_prompt("ptuning_mlp", lm.shape)).eval()
    ids, mask, _ = padded_rows((6, 6))
    before = graphs()
    with torch.no_grad():
        prompted_lm.label_scores(ids, mask, ((5,), (6, 7)))
        prompted_lm.generate(ids, mask, max_new_tokens=3, do_sample=False)
    assert graphs() == before


def test_a_lora_is_put_into_an_lm_that_stays_compiled() -> None:
    lm = tiny_lm("llama")
    lm.compile_layers(True)
    worn = with_lora(lm, TrainedLora(r=2))
    assert worn.compiled is not None and worn.compiled is not lm.compiled


def test_not_with_layers_that_run_twice_or_rows_that_do_not_pack() -> None:
    lm = tiny_lm("llama")
    lm.gradient_checkpointing = True
    with pytest.raises(UserMistake, match="model.gradient_checkpointing=true computes again: choose one"):
        lm.compile_layers(True)
    with pytest.raises(UserMistake, match="model.compile=false"):
        tiny_lm("bloom").compile_layers(True)


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_compiler.cache_clear()
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        pytest.raises(UserMistake, match="No working C.. compiler .* such as g.., .* model.compile=false"),
    ):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cpu"))  # a failure is not remembered
