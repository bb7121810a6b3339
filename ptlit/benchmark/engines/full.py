"""Full fine-tuning by transformers alone."""

from ptlit.benchmark.engines import PlainLoop, Setup
from ptlit.benchmark.engines.padded import PaddedLoss


def full(setup: Setup) -> PlainLoop:
    model = setup.plain_model.requires_grad_(True)
    return PlainLoop(model, PaddedLoss(setup.lm, model), dict(model.named_parameters()), setup.optimizer)
