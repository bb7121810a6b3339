"""One learning rate for LMs whose numbers spread differently: what `prompt.lm_scale` is for."""

import math
from pathlib import Path

import pytest
import torch
from methods import METHODS, make_prompt
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import ARCHITECTURES, WITHOUT_KEYS_AND_VALUES, padded_rows, tiny_lm
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, LlamaForCausalLM, Qwen2Config

from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.peft_format import WEIGHTS, prompt_in, read_adapter, write_adapter
from ptlit.prompt.init import start_prompt
from ptlit.prompted_lm import PromptedLM
from ptlit.spreads import embedding_scale, key_value_scales

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


@pytest.mark.parametrize("architecture", (*ARCHITECTURES, *WITHOUT_KEYS_AND_VALUES))
@torch.no_grad()
def test_scales_are_near_what_transformers_makes_of_words(architecture: str) -> None:
    lm = tiny_lm(architecture, spread=0.2)
    words = lm.model.get_input_embeddings()(torch.arange(lm.model.config.vocab_size))
    assert lm.shape.embedding_scale == nearest(words.var(0, correction=0).mean().sqrt().item() / 0.1)
    if architecture in WITHOUT_KEYS_AND_VALUES:
        assert lm.shape.key_scales == lm.shape.value_scales == ()
        return
    ids = torch.randint(10, 250, (60, 5), generator=torch.Generator().manual_seed(0))
    layers = lm.model(ids, past_key_values=DynamicCache(), use_cache=True).past_key_values.layers
    for layer, keys, values in zip(layers, lm.shape.key_scales, lm.shape.value_scales, strict=True):
        for scale, each in ((keys, layer.keys), (values, layer.values)):
            spread = each[:, :, 4].var(0, correction=0).mean().sqrt().item()
            assert 0.6 < scale / spread < 1.7


@torch.no_grad()
def test_what_all_keys_share_is_no_spread_though_positions_turn_it() -> None:
    """As the biases of Qwen's keys."""
    scales = []
    for bias in (0.0, 10.0):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(
                vocab_size=259,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.2,
            )
        )
        model.model.layers[0].self_attn.k_proj.bias.fill_(bias)
        scales.append(key_value_scales(model))
    assert scales[0] == scales[1]


def test_lms_that_read_little_and_know_more_words_than_they_have_are_measured() -> None:
    config = GPT2Config(vocab_size=259, n_positions=8, n_embd=32, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config)
    model.config.vocab_size = 300
    assert len(key_value_scales(model)[0]) == 2
    assert embedding_scale(model) == 0.25


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lm_scale", [True, False])
def test_what_was_saved_before_there_was_a_scale_is_read_as_it_was(
    method: str, lm_scale: bool, tmp_path: Path
) -> None:
    """From a checkpoint, whatever the config of today says, and from an adapter."""
    lm = in_other_numbers(tiny_lm("llama", spread=0.2))
    prompt = make_prompt(method, lm.shape, lm_scale=False).eval()
    saved = {name: each for name, each in prompt.state_dict().items() if name != "scale.value"}
    again = make_prompt(method, lm.shape, lm_scale=lm_scale).eval()
    again.load_state_dict(saved)
    assert torch.equal(again(), prompt())
    write_adapter(tmp_path, prompt, lm.shape, base_model="tiny")
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    del tensors["ptlit.scale.value"]
    save_file(tensors, tmp_path / WEIGHTS, metadata=metadata)
    torch.testing.assert_close(prompt_in(tmp_path, lm.shape)(), prompt())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("saved_with", "read_with"), [(True, False), (False, True)])
def test_an_adapter_goes_on_in_the_scale_that_is_asked_for(
    method: str, saved_with: bool, read_with: bool, tmp_path: Path
) -> None:
    lm = in_other_numbers(tiny_lm("llama", spread=0.2))
    torch.manual_seed(5)
    prompt = make_prompt(method, lm.shape, lm_scale=saved_with).eval()
    write_adapter(tmp_path, prompt, lm.shape, base_model="tiny")
    other = make_prompt(method, lm.shape, lm_scale=read_with).eval()
    wanted = other.scale.value.clone()
    read_adapter(tmp_path, other)
    torch.testing.assert_close(other(), prompt(), rtol=1e-4, atol=1e-4)
    assert torch.equal(other.scale.value, wanted)
