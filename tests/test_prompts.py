"""Counts of parameters that others have published, and options that must act or be refused."""

import pytest
import torch
from methods import METHODS, make_prompt, method_options
from peft import PrefixTuningConfig, PromptEncoder, PromptEncoderConfig
from peft.tuners.prefix_tuning import PrefixEncoder
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig

from ptlit.lm import LMShape, measure_shape
from ptlit.mistake import UserMistake
from ptlit.prompt import (
    PrefixProjection,
    PrefixTuning,
    PromptTuning,
    PtuningLstm,
    PtuningMlp,
    PtuningV2,
    SoftPrompt,
)

SHAPE = LMShape(
    hidden_size=24,
    num_layers=3,
    num_kv_heads=2,
    head_dim=6,
    max_positions=64,
    embedding_scale=4.0,
    key_scales=(1.0, 2.0, 1.0),
    value_scales=(0.25, 0.5, 4.0),
)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def bloomz_560m() -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
        )


@pytest.mark.parametrize(
    ("kind", "options", "trainable", "everything"),
    [
        (PromptTuning, {"num_virtual_tokens": 8}, 8_192, 559_222_784),
        (PtuningMlp, {"num_virtual_tokens": 20, "hidden_size": 128}, 300_288, 559_514_880),
        (PtuningLstm, {"num_virtual_tokens": 20, "hidden_size": 128}, 1_926_400, 561_140_992),
        (PrefixTuning, {"num_virtual_tokens": 20}, 983_040, 560_197_632),
        (PtuningV2, {"num_virtual_tokens": 30}, 1_474_560, 560_689_152),
        (PrefixProjection, {"num_virtual_tokens": 30, "hidden_size": 1024}, 51_461_120, 610_675_712),
    ],
)
def test_bloomz_560m_counts(
    bloomz_560m: torch.nn.Module, kind: type, options: dict[str, int], trainable: int, everything: int
) -> None:
    shape = measure_shape(bloomz_560m)
    with torch.device("meta"):
        prompt = kind(shape=shape, **options)
    assert count(prompt) == trainable
    assert count(prompt) + count(bloomz_560m) == everything
    if kind is PtuningMlp:
        assert 100 * trainable / everything == 0.05366935013417338


@pytest.mark.parametrize(
    ("kind", "options", "trainable"),
    [
        (PromptTuning, {"num_virtual_tokens": 200}, 614_400),
        (PtuningMlp, {"num_virtual_tokens": 20, "hidden_size": 3072}, 28_382_208),
        (PrefixTuning, {"num_virtual_tokens": 50}, 2_867_200),
    ],
)
def test_llama_3b_counts(kind: type, options: dict[str, int], trainable: int) -> None:
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        shape = measure_shape(AutoModelForCausalLM.from_config(config))
        assert count(kind(shape=shape, **options)) == trainable


@pytest.mark.parametrize(("method", "kind"), [("ptuning_mlp", "MLP"), ("ptuning_lstm", "LSTM")])
def test_encoder_is_pefts_with_the_same_weights(method: str, kind: str) -> None:
    config = PromptEncoderConfig(
        num_virtual_tokens=5,
        token_dim=24,
        encoder_hidden_size=16,
        encoder_num_layers=2,
        encoder_reparameterization_type=kind,
        num_transformer_submodules=1,
    )
    theirs = PromptEncoder(config)
    original = {"residual": 0.0, "lm_scale": False}
    ours = make_prompt(method, SHAPE, num_virtual_tokens=5, hidden_size=16, **original).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    torch.testing.assert_close(ours(), theirs(torch.arange(5)[None])[0])
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}


@pytest.mark.parametrize(("method", "projection"), [("prefix_tuning", False), ("prefix_projection", True)])
def test_prefix_is_pefts_with_the_same_weights(method: str, projection: bool) -> None:
    config = PrefixTuningConfig(
        num_virtual_tokens=5,
        token_dim=12,
        num_layers=3,
        num_attention_heads=2,
        encoder_hidden_size=16,
        prefix_projection=projection,
    )
    theirs = PrefixEncoder(config)
    ours = make_prompt(method, SHAPE, num_virtual_tokens=5, hidden_size=16, lm_scale=False)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    rows = theirs(torch.arange(5)[None])[0].view(5, 6, 2, 6)  # PEFT's order: (P, 2 * L, K, D)
    torch.testing.assert_close(ours()[1, 0], rows[:, 2])
    torch.testing.assert_close(ours()[2, 1], rows[:, 5])
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_every_option_acts(method: str) -> None:
    """Another value gives other parameters, or another answer in training; nothing is accepted and
    ignored.
    """
    _, options = method_options(method)
    for option, value in options.items():
        other = {"dropout": 0.4, "lm_scale": False}.get(option, value + 1)
        torch.manual_seed(0)
        first = make_prompt(method, SHAPE, **{option: value}).train()
        torch.manual_seed(0)
        second = make_prompt(method, SHAPE, **{option: other}).train()
        if count(first) == count(second):
            assert not torch.allclose(after_a_step(first), after_a_step(second)), option


def after_a_step(prompt: SoftPrompt) -> torch.Tensor:
    prompt().square().sum().backward()
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter -= 0.01 * parameter.grad
    return prompt().detach()


@pytest.mark.parametrize("method", ["ptuning_mlp", "ptuning_lstm"])
def test_what_passes_the_encoder_leaves_the_start_as_it_is_and_moves_each_token(method: str) -> None:
    """By its own embedding the gradient is that through the encoder and, 20 times, that of the output."""
    prompts = []
    for residual in (0.0, 20.0):
        torch.manual_seed(0)
        prompts.append(make_prompt(method, SHAPE, residual=residual, lm_scale=False).double().eval())
    alone, residual = prompts
    torch.testing.assert_close(residual(), alone(), rtol=0, atol=1e-5)
    downstream = torch.randn(6, 24, dtype=torch.float64)
    through, both = (
        torch.autograd.grad((each() * downstream).sum(), each.embedding.weight)[0] for each in prompts
    )
    torch.testing.assert_close(both, through + 20.0 * downstream)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("option", "value"), [("num_virtual_tokens", 0), ("hidden_size", 0), ("dropout", 1.0)]
)
def test_impossible_sizes_are_refused_by_name(method: str, option: str, value: float) -> None:
    if option in method_options(method)[1]:
        with pytest.raises(UserMistake, match=rf"prompt\.{option}={value}"):
            make_prompt(method, SHAPE, **{option: value})


def test_dropout_between_the_layers_of_a_one_layer_lstm_is_refused() -> None:
    with pytest.raises(UserMistake, match=r"prompt\.dropout=0\.1 .* prompt\.num_layers=1"):
        PtuningLstm(SHAPE, num_layers=1, dropout=0.1)


def test_less_than_the_encoder_alone_is_refused() -> None:
    with pytest.raises(UserMistake, match=r"prompt\.residual=-1\.0 must be 0"):
        PtuningMlp(SHAPE, residual=-1.0)


def test_deep_prompts_are_refused_where_layers_differ() -> None:
    with pytest.raises(UserMistake, match="choose prompt_tuning"):
        PrefixTuning(LMShape(24, 3, None, None, 64))
