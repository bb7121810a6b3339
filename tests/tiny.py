"""Fakes that can be read: a tokenizer of one token per byte, and random LMs of two layers from real
families.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3NextConfig,
)

from ptlit.lm import FrozenLM

SPECIAL = ("<pad>", "<bos>", "<eos>")


def byte_tokenizer(adds_bos: bool = False) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


ARCHITECTURES = ("gpt2", "llama", "qwen3", "bloom", "gemma3", "opt")
WITHOUT_KEYS_AND_VALUES = ("mamba", "qwen3_next")  # in every layer, or in some


def tiny_lm(
    name: str = "llama", layers: int = 2, vocabulary: int = 259, spread: float | None = None
) -> FrozenLM:
    """A random LM of one of the families, small enough to read: 2 layers, 32 wide, 4 heads (grouped where
    they can be).

    `spread` is that of its weights: at 0.02, the usual one, its answers hardly depend on what it reads.
    """
    torch.manual_seed(0)
    config = _config(name, layers, vocabulary)
    if spread is not None:
        config.initializer_range = spread
    model = AutoModelForCausalLM.from_config(config)
    return FrozenLM(model, byte_tokenizer())


def _config(name: str, layers: int, vocabulary: int) -> PretrainedConfig:
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    grouped = dict(
        ids,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    match name:
        case "gpt2":
            return GPT2Config(**ids, n_embd=32, n_layer=layers, n_head=4, n_positions=256)
        case "llama":
            return LlamaConfig(**grouped)
        case "qwen3":
            return Qwen3Config(**grouped, head_dim=8)
        case "bloom":
            return BloomConfig(**ids, hidden_size=32, n_layer=layers, n_head=4)
        case "gemma3":
            return Gemma3TextConfig(**grouped, head_dim=8, sliding_window=16)
        case "phi3":
            return Phi3Config(**grouped)
        case "mamba":
            return MambaConfig(**ids, hidden_size=32, num_hidden_layers=layers, state_size=4)
        case "qwen3_next":
            linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
            linear |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
            experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
            return Qwen3NextConfig(**grouped, **linear, **experts, head_dim=8)
        case "opt":
            sizes = {
                "hidden_size": 32,
                "word_embed_proj_dim": 32,
                "ffn_dim": 48,
                "max_position_embeddings": 256,
            }
            return OPTConfig(**ids, **sizes, num_hidden_layers=layers, num_attention_heads=4)
    raise ValueError(name)


def padded_rows(lengths: tuple[int, ...] = (14, 9, 5, 12), learned: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Random right-padded ids, their mask, and labels of which the last `learned` tokens of each row are
    learned.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 259, (len(lengths), max(lengths)), generator=generator)
    places = torch.arange(max(lengths))
    ends = torch.tensor(lengths)[:, None]
    mask = (places < ends).long()
    labels = ids.masked_fill((places >= ends) | (places < ends - learned), -100)
    return ids * mask, mask, labels
