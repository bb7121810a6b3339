"""One learning rate for LMs whose numbers spread differently: what `prompt.lm_scale` is for."""

import math

import pytest
import torch
from methods import METHODS, make_prompt
from tiny import ARCHITECTURES, padded_rows, tiny_lm
from transformers import DynamicCache, LlamaForCausalLM

from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.prompt.init import start_prompt
from ptlit.prompted_lm import PromptedLM

IDS, MASK, LABELS = padded_rows((12, 7, 10, 13), learned=1)


@torch.no_grad()
def in_other_numbers(lm: FrozenLM) -> FrozenLM:
    """The same function: each layer's norm takes back what its stream is wider by, queries and the way out of
    attention what keys and values are.
    """
    model = tiny_lm("llama", spread=0.2).model
    assert isinstance(model, LlamaForCausalLM)
    model.load_state_dict(lm.model.state_dict())
    model.model.embed_tokens.weight *= 8.0
    model.model.norm.variance_epsilon *= 64
    for layer, (keys, values) in zip(model.model.layers, [(2.0, 8.0), (4.0, 0.125)], strict=True):
        layer.self_attn.k_proj.weight *= keys
        layer.self_attn.q_proj.weight /= keys
        layer.self_attn.v_proj.weight *= values
        layer.self_attn.o_proj.weight *= 8.0 / values
        layer.mlp.down_proj.weight *= 8.0
        layer.input_layernorm.variance_epsilon *= 64
        layer.post_attention_layernorm.variance_epsilon *= 64
    return FrozenLM(model, lm.tokenizer)


def losses(lm: FrozenLM, method: str, lm_scale: bool, steps: int = 6) -> list[float]:
    torch.manual_seed(3)
    prompt = make_prompt(method, lm.shape, lm_scale=lm_scale)
    start_prompt(prompt, lm, text="Hi you")
    prompted_lm = PromptedLM(lm, prompt)
    optimizer = torch.optim.AdamW(prompt.parameters(), lr=0.01)
    keep, targets = learned_positions(LABELS)
    said = []
    for _ in range(steps):
        loss = learned_token_loss(prompted_lm(IDS, MASK, keep), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        said.append(loss.item())
    return said


@pytest.mark.parametrize("method", METHODS)
def test_an_lm_that_says_the_same_in_other_numbers_is_trained_the_same(method: str) -> None:
    one = tiny_lm("llama", spread=0.2)
    other = in_other_numbers(one)
    torch.testing.assert_close(other.model(IDS).logits, one.model(IDS).logits, rtol=1e-4, atol=1e-5)
    scaled = losses(one, method, lm_scale=True)
    assert losses(other, method, lm_scale=True) == pytest.approx(scaled, rel=1e-4)
    assert scaled[-1] < scaled[0]
    as_it_is = losses(one, method, lm_scale=False)
    assert losses(other, method, lm_scale=False) != pytest.approx(as_it_is, rel=1e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_scales_are_near_what_transformers_makes_of_words(architecture: str) -> None:
    lm = tiny_lm(architecture, spread=0.2)
    words = lm.model.get_input_embeddings()(torch.arange(lm.model.config.vocab_size))
    assert lm.shape.embedding_scale == nearest(words.var(0, correction=0).mean().sqrt().item() / 0.1)
    ids = torch.randint(10, 250, (1, 60), generator=torch.Generator().manual_seed(0))
    layers = lm.model(ids, past_key_values=DynamicCache(), use_cache=True).past_key_values.layers
    for layer, keys, values in zip(layers, lm.shape.key_scales, lm.shape.value_scales, strict=True):
        for scale, each in ((keys, layer.keys), (values, layer.values)):
            spread = each[0, :, 1:].var(1, correction=0).mean().sqrt().item()
            assert 0.6 < scale / spread < 1.7


def nearest(number: float) -> float:
    return min((2.0**power for power in range(-10, 11)), key=lambda each: abs(math.log(each / number)))


@pytest.mark.parametrize("method", METHODS)
def test_a_scaled_prompt_starts_on_the_very_numbers(method: str) -> None:
    lm = in_other_numbers(tiny_lm("llama", spread=0.2))
    starts = []
    for lm_scale in (True, False):
        prompt = make_prompt(method, lm.shape, lm_scale=lm_scale).eval()
        start_prompt(prompt, lm, text="Hi you")
        starts.append(prompt())
    if method in ("prompt_tuning", "prefix_tuning", "ptuning_v2"):
        assert torch.equal(*starts)
    torch.testing.assert_close(*starts, rtol=1e-4, atol=1e-4)


def test_what_was_saved_before_there_was_a_scale_is_read_as_it_was() -> None:
    lm = in_other_numbers(tiny_lm("llama", spread=0.2))
    for method in METHODS:
        prompt = make_prompt(method, lm.shape, lm_scale=False).eval()
        saved = {name: each for name, each in prompt.state_dict().items() if name != "scale.value"}
        again = make_prompt(method, lm.shape, lm_scale=False).eval()  # as the config of such a run has it
        again.load_state_dict(saved)
        assert torch.equal(again(), prompt())
        with pytest.raises(RuntimeError, match=r"scale\.value"):
            make_prompt(method, lm.shape, lm_scale=True).load_state_dict(saved)
