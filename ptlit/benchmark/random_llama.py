"""A llama with random weights: for speed they serve as well as trained ones, and no hub is asked."""

from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from ptlit.lm import FrozenLM, files_of


def random_llama(
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    max_position_embeddings: int = 8192,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    tokenizer: str = "bundled/SmolLM2-135M-Instruct",
    attn_implementation: str | None = None,
) -> FrozenLM:
    """`tokenizer`, a name or a folder, gives the words; the vocabulary may be larger than it knows."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    words = AutoTokenizer.from_pretrained(files_of(tokenizer, None))
    torch.manual_seed(0)
    chosen = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), **chosen)
    size = f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.0f}M"
    return FrozenLM(model, words, f"random-llama-{size}-vocabulary-{vocab_size}")
