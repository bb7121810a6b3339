"""Rows without padding, and layers that run twice: the same numbers as the plain way, everywhere."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from methods import METHODS, make_prompt
from tiny import ARCHITECTURES, WITHOUT_KEYS_AND_VALUES, padded_rows, tiny_lm
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptlit import short_attention
from ptlit.layers import layers_of
from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.pack import Pack
from ptlit.prefix import Prefix
from ptlit.prompt import EmbeddingPrompt
from ptlit.prompted_lm import PromptedLM

PACKING = ("gpt2", "llama", "qwen3", "gemma3", "opt")

every_packing_pair = pytest.mark.parametrize(
    ("architecture", "method"), [(lm, method) for lm in PACKING for method in METHODS]
)


@pytest.fixture(scope="module")
def lms() -> dict[str, FrozenLM]:
    """In float64, with weights so large that everything depends on everything."""
    found = {}
    for name in ARCHITECTURES:
        lm = tiny_lm(name, spread=0.3)
        found[name] = FrozenLM(in_float64(lm.model), lm.tokenizer)
    return found


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """All of it: the norms of most families compute in float32, whatever they are given."""
    for norm in model.modules():
        if type(norm).__name__.endswith("RMSNorm"):
            epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
            weight = norm.weight.double() + ("Gemma" in type(norm).__name__)
            norm.forward = partial(
                nn.functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon
            )
    return model.double()


@pytest.fixture
def lm(lms: dict[str, FrozenLM], architecture: str, monkeypatch: pytest.MonkeyPatch) -> FrozenLM:
    """Of the fixture above, its switches back in place afterwards."""
    lm = lms[architecture]
    monkeypatch.setattr(lm, "may_pack", lm.may_pack)
    monkeypatch.setattr(lm, "gradient_checkpointing", False)
    return lm


def prompted(lm: FrozenLM, method: str) -> PromptedLM:
    torch.manual_seed(7)
    return PromptedLM(lm, make_prompt(method, lm.shape).double()).eval()


SHORT = (14, 9, 5, 12)
LONG = (40, 9, 25)  # rows that PyTorch's own attention reads


def logits_and_gradients(
    prompted_lm: PromptedLM, lengths: tuple[int, ...] = SHORT
) -> tuple[Tensor, list[Tensor]]:
    ids, mask, labels = padded_rows(lengths)
    keep, targets = learned_positions(labels)
    logits = prompted_lm(ids, mask, keep)
    loss = learned_token_loss(logits, targets)
    return logits.detach(), list(torch.autograd.grad(loss, list(prompted_lm.prompt.parameters())))


def test_which_families_pack(lms: dict[str, FrozenLM]) -> None:
    assert {name for name, lm in lms.items() if lm.packs} == set(PACKING)
    assert not any(tiny_lm(name).packs for name in WITHOUT_KEYS_AND_VALUES)


def test_an_attention_that_cannot_be_replaced_is_not() -> None:
    lm = tiny_lm("llama")
    assert lm.packs
    lm.model.set_attn_implementation("eager")
    assert not lm.packs and not FrozenLM(lm.model).packs


@pytest.mark.parametrize("lengths", [SHORT, LONG])
@every_packing_pair
def test_packed_rows_equal_padded_rows(
    lm: FrozenLM, method: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompted_lm = prompted(lm, method)
    plain: list[bool] = []

    def suits(*given: Any, suits: Callable[..., bool] = short_attention.suits) -> bool:
        plain.append(suits(*given))
        return plain[-1]

    monkeypatch.setattr(short_attention, "suits", suits)
    packed, packed_gradients = logits_and_gradients(prompted_lm, lengths)
    assert set(plain[:-1]) == {lengths == SHORT}  # the last layer's queries may be few
    lm.may_pack = False
    padded, padded_gradients = logits_and_gradients(prompted_lm, lengths)
    torch.testing.assert_close(packed, padded, rtol=1e-9, atol=1e-9 * float(padded.abs().max()))
    for one, other in zip(packed_gradients, padded_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("under_autocast", [False, True])
@pytest.mark.parametrize("architecture", PACKING)
def test_half_precision_attends_in_full(
    architecture: str, dtype: torch.dtype, under_autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches the attention is float32, and the gradients are float64's within the rounding."""
    seen: set[torch.dtype] = set()

    def attend(pack: Pack, *inputs: Any, attend: Callable[..., Tensor] = short_attention.attend) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        seen.update(each.dtype for each in inputs[1:4])
        return attend(pack, *inputs)

    exact = tiny_lm(architecture)
    half = FrozenLM(exact.model if under_autocast else exact.model.to(dtype), exact.tokenizer)
    prompted_lm = PromptedLM(half, make_prompt("prompt_tuning", half.shape)).eval()
    monkeypatch.setattr(short_attention, "attend", attend)
    with torch.autocast("cpu", dtype, enabled=under_autocast):
        assert half.packs
        _, gradients = logits_and_gradients(prompted_lm)
    assert seen == {torch.float32}
    monkeypatch.undo()
    half.model.double()
    _, expected = logits_and_gradients(prompted_lm.double())
    for one, other in zip(gradients, expected, strict=True):
        assert float((one - other).norm()) < 0.15 * float(other.norm())


@every_packing_pair
def test_no_packed_row_sees_another(lm: FrozenLM, method: str) -> None:
    prompted_lm = prompted(lm, method)
    ids, mask, _ = padded_rows()
    before = prompted_lm(ids, mask, mask.bool())
    changed = ids.clone()
    changed[1] = 3 + (changed[1] + 50) % 200  # a row in the middle of the pack
    after = prompted_lm(changed, mask, mask.bool())
    of_that_row = torch.repeat_interleave(torch.arange(len(ids)), mask.sum(1)) == 1
    assert torch.equal(before[~of_that_row], after[~of_that_row])
    assert not torch.allclose(before[of_that_row], after[of_that_row])


@pytest.mark.parametrize("architecture", PACKING)
@pytest.mark.parametrize("method", [m for m in METHODS if "prefix" not in m and "v2" not in m])
def test_virtual_tokens_running_along_equal_their_prefix(lm: FrozenLM, method: str) -> None:
    prompted_lm = prompted(lm, method)
    assert isinstance(prompted_lm.prompt, EmbeddingPrompt)
    ids, mask, labels = padded_rows()
    keep, _ = learned_positions(labels)
    with torch.no_grad():
        along, behind = prompted_lm(ids, mask, keep), prompted_lm(ids, mask, keep, prompted_lm.prefix())
    torch.testing.assert_close(along, behind, rtol=1e-9, atol=1e-9 * float(behind.abs().max()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_all_rows_begin_with_is_read_once(lm: FrozenLM, method: str) -> None:
    prompted_lm = prompted(lm, method)
    ids, mask, labels = padded_rows((14, 9, 8, 12))
    ids[:, :4] = 2  # a token that stands nowhere else
    keep, targets = learned_positions(labels)
    weights = list(prompted_lm.prompt.parameters())
    slow = prompted_lm.forward_concatenated(ids, mask, keep)
    slow_gradients = torch.autograd.grad(learned_token_loss(slow, targets), weights)
    slow = slow.detach()

    read: list[Tensor] = []
    handle = lm.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: read.append(given[0]))
    fast = prompted_lm(ids, mask, keep)
    handle.remove()
    assert sum(int((each == 2).sum()) for each in read) == 4
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5 * float(slow.abs().max()))
    gradients = torch.autograd.grad(learned_token_loss(fast, targets), weights)
    for one, other in zip(gradients, slow_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))

    with torch.no_grad():
        together = prompted_lm.label_scores(ids, mask, ((5,), (6,)), prompted_lm.prefix())
        alone = [
            prompted_lm.label_scores(ids[i : i + 1, :n], mask[i : i + 1, :n], ((5,), (6,)))
            for i, n in enumerate(mask.sum(1).tolist())
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_positions_start_anew_in_every_row() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert Pack.of(mask, shared=2).positions.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    prefix = Prefix.from_key_values(torch.zeros(1, 2, 5, 1, 4))
    assert Pack.of(mask, shared=2, prefix=prefix).positions.tolist() == [[5, 6, 7, 8, 7, 8, 9]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("architecture", "packs"), [(lm, False) for lm in ARCHITECTURES] + [(lm, True) for lm in PACKING]
)
def test_checkpointing_changes_no_gradient_and_saves_memory(lm: FrozenLM, method: str, packs: bool) -> None:
    lm.may_pack = packs
    prompted_lm = prompted(lm, method)
    kept = {}
    found = {}
    for lm.gradient_checkpointing in (False, True):
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found[lm.gradient_checkpointing] = logits_and_gradients(prompted_lm)
        kept[lm.gradient_checkpointing] = sum(sizes.values())
    (logits, gradients), (again, gradients_again) = found[False], found[True]
    assert torch.equal(logits, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, gradients_again, strict=True))
    assert kept[True] < kept[False]
    assert not any(module.training for module in lm.model.modules())


@pytest.mark.parametrize("architecture", PACKING)
def test_a_retained_graph_is_computed_again_as_often_as_asked(lm: FrozenLM) -> None:
    lm.gradient_checkpointing = True
    prompted_lm = prompted(lm, "prompt_tuning")
    ids, mask, labels = padded_rows(SHORT)
    keep, targets = learned_positions(labels)
    loss = learned_token_loss(prompted_lm(ids, mask, keep), targets)
    (weight,) = prompted_lm.prompt.parameters()
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0


@pytest.mark.parametrize("lengths", [SHORT, LONG])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("architecture", PACKING)
def test_the_last_layer_is_for_those_asked_alone(
    lm: FrozenLM, method: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lm.may_narrow
    prompted_lm = prompted(lm, method)
    ids, mask, labels = padded_rows(lengths, learned=2)
    keep, targets = learned_positions(labels)
    keep[0], targets = False, targets[2:]  # nothing of the first row
    tokens: list[int] = []
    last = layers_of(lm.model)[-1]
    norm = [each for each in last.modules() if "norm" in type(each).__name__.lower()][-1]
    handle = norm.register_forward_pre_hook(lambda _, given: tokens.append(given[0].numel() // 32))
    found = {}
    for narrow in (True, False):
        monkeypatch.setattr(lm, "may_narrow", narrow)
        logits = prompted_lm(ids, mask, keep)
        loss = learned_token_loss(logits, targets)
        found[narrow] = logits.detach(), *torch.autograd.grad(loss, list(prompted_lm.prompt.parameters()))
    handle.remove()
    behind = 0 if method == "prefix_tuning" else prompted_lm.num_virtual_tokens
    assert tokens == [int(keep.sum()), behind + sum(lengths)]
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("architecture", PACKING)
def test_rows_of_which_nothing_is_left_to_read(lm: FrozenLM, method: str) -> None:
    """They begin alike, and nothing of them is learned."""
    ids, mask = torch.tensor([[5, 0], [5, 0]]), torch.tensor([[1, 0], [1, 0]])
    assert prompted(lm, method)(ids, mask, torch.zeros_like(mask).bool()).shape == (0, 259)


def test_many_that_are_asked_are_all() -> None:
    mask = torch.ones(2, 4)
    assert Pack.of(mask).asking(torch.ones(1, 8).bool()).asked is None
    assert Pack.of(mask).asking(torch.zeros(1, 8).bool()).asked is None
    asked = Pack.of(mask, shared=1).asking(torch.tensor([[0, 0, 0, 0, 1, 0, 1, 0, 1]]).bool()).asked
    assert asked is not None
    assert asked.tokens.tolist() == [4, 6, 8]
    assert asked.places.tolist() == [0, 2, 3] and asked.within.tolist() == [[3, 0], [1, 3]]


def test_a_last_layer_that_needs_all_its_tokens_has_them() -> None:
    model = tiny_lm("llama").model
    first, last = model.model.layers
    read: list[Tensor] = []
    first.register_forward_hook(lambda _, given, made: read.append(made))

    def with_the_first(_: object, given: object, made: Tensor) -> Tensor:
        return made + read[-1][:, -made.shape[1] :]  # of as many tokens as it would have been given

    last.mlp.register_forward_hook(with_the_first)
    lm = FrozenLM(model)
    assert lm.packs and not lm.may_narrow
