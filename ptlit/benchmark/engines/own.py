"""ptlit as SoftPromptModule.training_step runs it, with less memory, and by its slow reference route."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ptlit.benchmark.engines import PlainLoop, Setup
from ptlit.data.collate import Collate
from ptlit.kept_memory import keep_freed_memory
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.prompted_lm import PromptedLM


def ptlit(setup: Setup) -> PlainLoop:
    prompted_lm = PromptedLM(setup.lm, setup.prompt)
    return _loop(setup, prompted_lm, prompted_lm.forward)


def ptlit_recomputing(setup: Setup) -> PlainLoop:
    """As with model.gradient_checkpointing=true."""
    setup.lm.gradient_checkpointing = True
    return ptlit(setup)


def ptlit_compiled(setup: Setup) -> PlainLoop:
    """As with model.compile=true; the time to the first step has the compilation in it."""
    setup.lm.compile_layers(True)
    return ptlit(setup)


def ptlit_concatenated(setup: Setup) -> PlainLoop:
    prompted_lm = PromptedLM(setup.lm, setup.prompt)
    return _loop(setup, prompted_lm, prompted_lm.forward_concatenated)


def _loop(setup: Setup, prompted_lm: PromptedLM, logits_of: Callable[..., Tensor]) -> PlainLoop:
    assert setup.prompt is not None
    keep_freed_memory()  # as the commands do
    collate, device = Collate(setup.lm.tokenizer.pad_token_id or 0), setup.lm.device

    def loss(rows: Any) -> Tensor:
        batch = collate(rows)
        ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
        keep, targets = learned_positions(labels)
        return learned_token_loss(logits_of(ids, mask, keep), targets)

    return PlainLoop(prompted_lm, loss, dict(setup.prompt.named_parameters()), setup.optimizer)
