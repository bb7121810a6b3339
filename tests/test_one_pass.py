"""Several prompts read in one pass of the LM: each must read as it would alone, by the slow way."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from methods import METHODS, make_prompt
from test_packing import LONG, PACKING, SHORT, lm, lms
from tiny import WITHOUT_KEYS_AND_VALUES, padded_rows, tiny_lm
from torch import Tensor

from ptlit.ensemble import Ensemble
from ptlit.fewer_tokens import FewerTokens
from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.prompted_lm import PromptedLM

__all__ = ["lm", "lms"]  # fixtures


def members_of(lm: FrozenLM, method: str, lengths: tuple[int, ...] = (6, 6, 4)) -> list[PromptedLM]:  # noqa: F811
    """Prompts that have nothing in common but their kind, the last one shorter."""
    torch.manual_seed(7)
    prompts = [make_prompt(method, lm.shape, num_virtual_tokens=length).to(lm.dtype) for length in lengths]
    return [PromptedLM(lm, prompt).eval() for prompt in prompts]


@contextmanager
def passes(lm: FrozenLM) -> Iterator[list[int]]:  # noqa: F811
    """One for every time that the LM reads."""
    read: list[int] = []
    handle = lm.model.get_output_embeddings().register_forward_pre_hook(lambda _, given: read.append(1))
    yield read
    handle.remove()


def gradients_of(members: list[PromptedLM], each: list[Tensor], targets: Tensor) -> list[Tensor]:
    """Of the sum of what they lose, as a training step has it."""
    weights = [weight for member in members for weight in member.parameters() if weight.requires_grad]
    losses = [learned_token_loss(logits, targets) for logits in each]
    return list(torch.autograd.grad(torch.stack(losses).sum(), weights))


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize(("lengths", "learned"), [(SHORT, 1), (SHORT, 5), (LONG, 1)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", PACKING)
def test_each_learns_as_by_the_slow_way(
    lm: FrozenLM,  # noqa: F811
    method: str,
    lengths: tuple[int, ...],
    learned: int,
    recomputing: bool,
) -> None:
    """The last layer narrowed to the learned tokens or not, rows read by either attention."""
    lm.gradient_checkpointing = recomputing
    members = members_of(lm, method)
    ids, mask, labels = padded_rows(lengths, learned)
    keep, targets = learned_positions(labels)
    with passes(lm) as read:
        together = Ensemble(members).logits(ids, mask, keep)
        assert len(read) == 1
    slow = [member.forward_concatenated(ids, mask, keep) for member in members]
    for logits, expected in zip(together, slow, strict=True):
        torch.testing.assert_close(
            logits, expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max())
        )
    expected_gradients = gradients_of(members, slow, targets)
    for one, other in zip(gradients_of(members, together, targets), expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8 * float(other.abs().max()))
    first, second, _ = together
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("architecture", PACKING)
def test_labels_are_scored_in_one_pass(lm: FrozenLM, method: str) -> None:  # noqa: F811
    members, words = members_of(lm, method), ((5,), (6,), (70,))
    ids, mask, _ = padded_rows()
    with torch.no_grad():
        ensemble = Ensemble(members)
        prefix = ensemble.prefix()
        with passes(lm) as read:
            together = ensemble.label_scores(ids, mask, words, prefix)
            assert len(read) == 1
        alone = []
        for member in members:
            keep = torch.nn.functional.one_hot(mask.sum(1) - 1, ids.shape[1]).bool()
            slow = member.forward_concatenated(ids, mask, keep)
            alone.append(slow.log_softmax(-1)[:, [5, 6, 70]].exp())
    expected = torch.stack(alone).mean(0).log()
    torch.testing.assert_close(together.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["prompt_tuning", "ptuning_mlp", "prefix_tuning"])
@pytest.mark.parametrize("architecture", PACKING)
def test_each_may_leave_out_other_tokens(lm: FrozenLM, method: str) -> None:  # noqa: F811
    members = members_of(lm, method, (6, 6))
    stays = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0]]).bool()
    ids, mask, labels = padded_rows()
    keep, _ = learned_positions(labels)
    fewer = [FewerTokens(member, each) for member, each in zip(members, stays, strict=True)]
    with passes(lm) as read:
        together = Ensemble(fewer).logits(ids, mask, keep)
        assert len(read) == 1
    for each, logits in zip(fewer, together, strict=True):
        slow = each.part.forward_concatenated(ids, mask, keep)
        torch.testing.assert_close(logits, slow, rtol=1e-9, atol=1e-9 * float(slow.detach().abs().max()))


@pytest.mark.parametrize("architecture", ["bloom", *WITHOUT_KEYS_AND_VALUES])
def test_an_lm_that_does_not_pack_reads_for_each_in_turn(architecture: str) -> None:
    one = tiny_lm(architecture, spread=0.3)
    members = members_of(one, "prompt_tuning")
    ids, mask, labels = padded_rows()
    keep, _ = learned_positions(labels)
    with torch.no_grad(), passes(one) as read:
        together = Ensemble(members).logits(ids, mask, keep)
        assert len(read) == 3
        slow = [member.forward_concatenated(ids, mask, keep) for member in members]
    for logits, expected in zip(together, slow, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_in_half_precision_they_stay_apart_too() -> None:
    one = tiny_lm("llama", spread=0.3)
    half = FrozenLM(one.model.bfloat16(), one.tokenizer)
    members = members_of(half, "prefix_tuning")
    ids, mask, labels = padded_rows()
    keep, _ = learned_positions(labels)
    with torch.no_grad(), passes(half) as read:
        together = Ensemble(members).logits(ids, mask, keep)
        assert len(read) == 1
        alone = [member(ids, mask, keep) for member in members]
    apart = float((alone[0] - alone[1]).abs().max())
    for logits, expected in zip(together, alone, strict=True):
        assert float((logits - expected).abs().max()) < 0.05 * apart
