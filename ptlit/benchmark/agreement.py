"""Correct first: no speed is reported of engines that do not compute the same."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ptlit.benchmark.measure import Judgement
from ptlit.mistake import UserMistake


class Tolerance(NamedTuple):
    outcome: float  # of a loss, relative to it, or of a probability
    gradient: float  # relative to its norm
    replies: float = 0  # share of texts that may be written on differently


# In bfloat16 rounding moves the gradient at the foot of 30 layers by several per cent, whoever computes it,
# and decides between near ties again with every word that is written.
TOLERANCE = {
    "float32": Tolerance(1e-3, 1e-3),
    "bfloat16": Tolerance(0.05, 0.15, replies=0.5),
    "float16": Tolerance(0.02, 0.02),
}


class Disagreement(UserMistake):
    """Names the engine and how far it is off."""


def check_agreement(judged: Mapping[str, Judgement], case: str, tolerance: Tolerance) -> None:
    """All against the first: loss, and gradients of everything that is learned."""
    (reference, expected), *others = judged.items()
    if not np.isfinite(expected.loss):
        raise Disagreement(f"{case}: the loss of {reference} is {expected.loss}, so no speed is reported.")
    for engine, found in others:
        check_loss(engine, found.loss, reference, expected.loss, case, tolerance.outcome)
        if found.gradients.keys() != expected.gradients.keys():
            raise Disagreement(
                f"{case}: {engine} learns {sorted(found.gradients)} and {reference} "
                f"{sorted(expected.gradients)}, so no speed is reported."
            )
        error, name = gradient_error(expected.gradients, found.gradients)
        if not error <= tolerance.gradient:
            raise Disagreement(
                f"{case}: the gradient of {name} by {engine} differs from that of {reference} "
                f"by {error:.1e} of its norm, more than {tolerance.gradient:.0e}, so no speed is reported."
            )


def check_loss(
    engine: str, loss: float, reference: str, expected: float, case: str, tolerance: float
) -> None:
    if not abs(loss - expected) <= tolerance * abs(expected):
        raise Disagreement(
            f"{case}: the loss of {engine}, {loss:.6f}, differs from that of {reference}, {expected:.6f}, "
            f"by more than {tolerance:.0e} of it, so no speed is reported."
        )


def gradient_error(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference of a tensor, in units of the norm of all, and whose it is."""
    norm = np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in expected.values()))
    errors = {
        name: float(np.linalg.norm((found[name] - value).astype(np.float64))) / (norm or 1.0)
        for name, value in expected.items()
    }
    name = max(errors, key=lambda name: np.inf if np.isnan(errors[name]) else errors[name])
    return errors[name], name
