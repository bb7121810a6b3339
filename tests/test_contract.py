"""What every soft prompt owes on every architecture, judged by float64, by PEFT and by the slow route."""

import json
from pathlib import Path

import pytest
import torch
from methods import METHODS, make_prompt, method_options
from peft import PeftModel
from tiny import ARCHITECTURES, WITHOUT_KEYS_AND_VALUES, padded_rows, tiny_lm
from torch import Tensor

from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.mistake import UserMistake
from ptlit.peft_format import read_adapter, write_adapter
from ptlit.prompt import EmbeddingPrompt, KeyValuePrompt
from ptlit.prompt.init import start_prompt
from ptlit.prompted_lm import PromptedLM

every_pair = pytest.mark.parametrize(
    ("architecture", "method"), [(lm, method) for lm in ARCHITECTURES for method in METHODS]
)


@pytest.fixture(scope="module")
def lms() -> dict[str, FrozenLM]:
    return {name: tiny_lm(name) for name in ARCHITECTURES}


def prompted(lms: dict[str, FrozenLM], architecture: str, method: str, **changes: object) -> PromptedLM:
    torch.manual_seed(7)
    lm = lms[architecture]
    return PromptedLM(lm, make_prompt(method, lm.shape, **changes))


def loss_and_gradients(
    prompted_lm: PromptedLM, logits: Tensor, targets: Tensor
) -> tuple[Tensor, list[Tensor]]:
    loss = learned_token_loss(logits, targets)
    return loss.detach(), list(torch.autograd.grad(loss, list(prompted_lm.prompt.parameters())))


@every_pair
def test_shape_has_no_batch_axis(lms: dict[str, FrozenLM], architecture: str, method: str) -> None:
    prompt = prompted(lms, architecture, method).prompt
    shape = lms[architecture].shape
    if isinstance(prompt, EmbeddingPrompt):
        assert prompt().shape == (6, 32)
    else:
        assert prompt().shape == (2, 2, 6, shape.num_kv_heads, shape.head_dim)


@every_pair
def test_prefix_route_equals_copying_the_prompt_into_every_row(
    lms: dict[str, FrozenLM], architecture: str, method: str
) -> None:
    prompted_lm = prompted(
        lms, architecture, method
    ).eval()  # no dropout: both routes must meet the same prompt
    ids, mask, labels = padded_rows()
    keep, targets = learned_positions(labels)
    loss, gradients = loss_and_gradients(prompted_lm, prompted_lm(ids, mask, keep), targets)
    slow_loss, slow_gradients = loss_and_gradients(
        prompted_lm, prompted_lm.forward_concatenated(ids, mask, keep), targets
    )
    torch.testing.assert_close(loss, slow_loss, rtol=1e-5, atol=1e-6)
    for fast, slow in zip(gradients, slow_gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-5 * max(1.0, float(slow.abs().max())))


@pytest.mark.parametrize("method", METHODS)
def test_more_virtual_tokens_than_a_sliding_window_holds(lms: dict[str, FrozenLM], method: str) -> None:
    prompted_lm = prompted(lms, "gemma3", method, num_virtual_tokens=20).eval()  # the window is 16
    ids, mask, _ = padded_rows()
    fast, slow = prompted_lm(ids, mask, mask.bool()), prompted_lm.forward_concatenated(ids, mask, mask.bool())
    if issubclass(
        method_options(method)[0], KeyValuePrompt
    ):  # PEFT's way, a growing cache, forgets its start
        assert torch.isfinite(fast).all()
    else:
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


@every_pair
def test_padding_and_neighbours_change_nothing(
    lms: dict[str, FrozenLM], architecture: str, method: str
) -> None:
    prompted_lm = prompted(lms, architecture, method).eval()
    ids, mask, labels = padded_rows()
    keep, _ = learned_positions(labels)
    together = prompted_lm(ids, mask, keep)
    lengths = mask.sum(1).tolist()
    alone = [
        prompted_lm(ids[i : i + 1, :n], mask[i : i + 1, :n], keep[i : i + 1, :n])
        for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@every_pair
def test_training_moves_all_of_the_prompt_and_nothing_of_the_lm(
    lms: dict[str, FrozenLM], architecture: str, method: str
) -> None:
    prompted_lm = prompted(lms, architecture, method).train()
    before = {name: value.clone() for name, value in prompted_lm.lm.model.state_dict().items()}
    ids, mask, labels = padded_rows()
    keep, targets = learned_positions(labels)
    optimizer = torch.optim.AdamW([p for p in prompted_lm.parameters() if p.requires_grad], lr=1e-2)
    learned_token_loss(prompted_lm(ids, mask, keep), targets).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prompted_lm.prompt.parameters())
    assert all(p.grad is None for p in prompted_lm.lm.parameters())
    optimizer.step()
    assert not any(module.training for module in prompted_lm.lm.model.modules())
    after = prompted_lm.lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@every_pair
def test_checkpoint_is_the_prompt_alone_and_loads_strictly(
    lms: dict[str, FrozenLM], architecture: str, method: str
) -> None:
    prompted_lm, other = (prompted(lms, architecture, method) for _ in range(2))
    with torch.no_grad():
        for parameter in other.prompt.parameters():
            parameter.add_(1.0)
    state = prompted_lm.state_dict()
    assert state.keys() == {f"prompt.{name}" for name in prompted_lm.prompt.state_dict()}
    other.load_state_dict(state)
    torch.testing.assert_close(other.prompt.eval()(), prompted_lm.prompt.eval()())
    state.pop(next(name for name in state if name.startswith("prompt.embedding")))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)


@every_pair
@pytest.mark.parametrize("start", ["text", "vocabulary"])
def test_starts_where_it_is_told(
    lms: dict[str, FrozenLM], architecture: str, method: str, start: str
) -> None:
    """Behind a prompt that starts from a text the LM answers as if it had read the text's words."""
    prompted_lm = prompted(lms, architecture, method).eval()
    text = "Sentiment of a tweet?"
    start_prompt(prompted_lm.prompt, prompted_lm.lm, from_=start, text=text)
    ids, mask, _ = padded_rows((9, 9))
    keep = torch.zeros_like(mask, dtype=torch.bool)
    keep[:, -1] = True
    ours = prompted_lm(ids, mask, keep)
    assert torch.isfinite(ours).all()
    if start == "text":
        words = prompted_lm.lm.tokenizer(text, return_tensors="pt")["input_ids"][:, :6].expand(2, -1)
        read = torch.cat([words, ids], dim=1)
        plain = prompted_lm.lm.model(input_ids=read, attention_mask=torch.ones_like(read)).logits[:, -1]
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@every_pair
def test_peft_gives_the_same_logits(
    lms: dict[str, FrozenLM], architecture: str, method: str, tmp_path: Path
) -> None:
    prompted_lm = prompted(lms, architecture, method).eval()
    lm = prompted_lm.lm
    write_adapter(tmp_path, prompted_lm.prompt, lm.shape, base_model="tiny")
    ids, mask, _ = padded_rows((11, 11, 11))
    ours = prompted_lm(ids, mask, mask.bool())
    peft = PeftModel.from_pretrained(tiny_lm(architecture).model, str(tmp_path)).eval()
    theirs = peft(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
    torch.testing.assert_close(ours, theirs.flatten(0, 1), rtol=1e-4, atol=1e-5)

    other = make_prompt(method, lm.shape)
    read_adapter(tmp_path, other)  # the encoder travels along: the same file can be trained further
    torch.testing.assert_close(other.eval()(), prompted_lm.prompt())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["num_virtual_tokens"] == 6


@every_pair
def test_greedy_generation_equals_repeated_forward(
    lms: dict[str, FrozenLM], architecture: str, method: str
) -> None:
    prompted_lm = prompted(lms, architecture, method).eval()
    ids, mask, _ = padded_rows((7, 7))
    slow = ids
    for _ in range(5):
        keep = torch.zeros_like(slow, dtype=torch.bool)
        keep[:, -1] = True
        answers = prompted_lm.forward_concatenated(slow, torch.ones_like(slow), keep).argmax(-1)
        slow = torch.cat([slow, answers[:, None]], dim=1)
    generated = prompted_lm.generate(ids, mask, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, slow)


@every_pair
def test_label_scores_equal_each_label_read_in_full(
    lms: dict[str, FrozenLM], architecture: str, method: str
) -> None:
    prompted_lm = prompted(lms, architecture, method).eval()
    ids, mask, _ = padded_rows()
    labels = ((5,), (6, 7), (8, 9, 10))
    with torch.no_grad():
        together = prompted_lm.label_scores(ids, mask, labels)
        one_token = prompted_lm.label_scores(ids, mask, ((5,), (6,)))
        for row, length in enumerate(mask.sum(1).tolist()):
            for column, label in enumerate(labels):
                read = torch.cat([ids[row : row + 1, :length], torch.tensor([label])], dim=1)
                keep = torch.zeros_like(read, dtype=torch.bool)
                keep[:, length - 1 : -1] = True
                logits = prompted_lm.forward_concatenated(read, torch.ones_like(read), keep)
                expected = logits.log_softmax(-1)[range(len(label)), label].sum()
                torch.testing.assert_close(together[row, column], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one_token[:, 0], together[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", WITHOUT_KEYS_AND_VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_lms_that_keep_other_states_take_the_slow_route(architecture: str, method: str) -> None:
    lm = tiny_lm(architecture)
    if issubclass(method_options(method)[0], KeyValuePrompt):
        with pytest.raises(UserMistake, match="choose prompt_tuning"):
            make_prompt(method, lm.shape)
        return
    prompted_lm = PromptedLM(lm, make_prompt(method, lm.shape)).eval()
    ids, mask, labels = padded_rows()
    keep, targets = learned_positions(labels)
    _, gradients = loss_and_gradients(prompted_lm, prompted_lm(ids, mask, keep), targets)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    with torch.no_grad():
        scores = prompted_lm.label_scores(ids, mask, ((5,), (6, 7)))
        for row, length in enumerate(mask.sum(1).tolist()):
            read = torch.cat([ids[row : row + 1, :length], torch.tensor([[6, 7]])], dim=1)
            virtual = prompted_lm.prompt()[None]
            logits = lm.model(inputs_embeds=torch.cat([virtual, lm.embed(read)], dim=1)).logits[0, -3:-1]
            expected = logits.log_softmax(-1)[[0, 1], [6, 7]].sum()
            torch.testing.assert_close(scores[row, 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", (*ARCHITECTURES, *WITHOUT_KEYS_AND_VALUES))
def test_rows_that_begin_alike_are_read_by_the_lm_alone(architecture: str) -> None:
    """As every template makes them; without a prompt, as each warning about one and every baseline does."""
    lm = tiny_lm(architecture)
    ids = torch.tensor([[7, 8, 9, 10, 11], [7, 8, 9, 12, 13]])
    keep = torch.tensor([[False, False, False, True, True]] * 2)
    untrained = PromptedLM(lm, None)
    with torch.no_grad():
        expected = torch.cat([lm.model(row[None]).logits[0, 3:] for row in ids])
        torch.testing.assert_close(untrained(ids, torch.ones_like(ids), keep), expected, rtol=1e-4, atol=1e-4)
        scores = untrained.label_scores(ids, torch.ones_like(ids), ((20,), (21,)))
    torch.testing.assert_close(scores, expected[1::2].log_softmax(-1)[:, [20, 21]], rtol=1e-4, atol=1e-4)
