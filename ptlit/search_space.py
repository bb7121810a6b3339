"""What a search goes through: Hydra's words for a sweep as Optuna's distributions, and their mistakes."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from ptlit.mistake import UserMistake
from ptlit.trials import need_optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEARCH = "hydra_plugins.ptlit.Search"  # the _target_ of conf/hydra/sweeper/search.yaml


def is_search(cfg: DictConfig) -> bool:
    return OmegaConf.select(cfg, "hydra.sweeper._target_") == SEARCH


def judged_by(cfg: DictConfig) -> tuple[str, Literal["min", "max"]]:
    """The score that a run returns, and whether the highest of it is the best."""
    mode: Any = OmegaConf.select(cfg, "callbacks.checkpoint.mode")
    return str(OmegaConf.select(cfg, "callbacks.checkpoint.monitor")), mode


def distribution(swept: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values: Any = swept.value()
    if isinstance(values, IntervalSweep):
        assert values.start is not None and values.end is not None
        log = "log" in values.tags
        if isinstance(values.start, int) and isinstance(values.end, int):
            return IntDistribution(values.start, values.end, log=log)
        return FloatDistribution(values.start, values.end, log=log)
    if isinstance(values, RangeSweep):
        numbers = sorted(values.range())
        if all(isinstance(each, int) for each in numbers):
            return IntDistribution(numbers[0], numbers[-1], step=abs(int(values.step)))
    return CategoricalDistribution(
        sorted(set(swept.sweep_string_iterator()))
    )  # shuffled ones too stay the same


def present_settings(cfg: DictConfig, space: Mapping[str, "BaseDistribution"]) -> dict[str, Any]:
    """What the searched keys are in a config without a search, as far as it is among what is searched."""
    groups = OmegaConf.select(cfg, "hydra.runtime.choices")
    found = {}
    for key, values in space.items():
        present = groups[key] if key in groups else OmegaConf.select(cfg, key.lstrip("+"))
        for word in among(values, present):
            found[key] = word
    return found


def among(values: "BaseDistribution", present: Any) -> list[Any]:
    """`present` as Optuna has it, if it is one of the values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, CategoricalDistribution):  # of words, as a command line has them
        read = OverridesParser.create().parse_override
        return [word for word in values.choices if read(f"key={word}").value() == present][:1]
    if isinstance(values, IntDistribution):
        return [present] if present in range(values.low, values.high + 1, values.step) else []
    assert isinstance(values, FloatDistribution)
    return [present] if isinstance(present, int | float) and values.low <= present <= values.high else []


def any_value(swept: Override) -> str:
    values: Any = swept.value()
    said = values.start if isinstance(values, IntervalSweep) else next(swept.sweep_string_iterator())
    return f"{swept.get_key_element()}={said}"


def space_mistakes(swept: Sequence[Override]) -> list[str]:
    """Of what is searched, and of the machine that is to do it."""
    mistakes = [mistake for each in swept for mistake in values_mistakes(each)]
    if not swept:
        mistakes.append("Nothing is searched: give a key a range, such as optim.lr='interval(0.001, 0.1)'.")
    try:
        need_optuna()
    except UserMistake as mistake:
        mistakes.append(str(mistake))
    return mistakes


def values_mistakes(swept: Override) -> list[str]:
    values: Any = swept.value()
    if isinstance(values, IntervalSweep):
        assert values.start is not None and values.end is not None
        if not (math.isfinite(values.start) and values.start < values.end and math.isfinite(values.end)):
            return [f"{swept.input_line}: an interval goes from a number to a higher one."]
        if "log" in values.tags and values.start <= 0:
            return [f"{swept.input_line}: a logarithmic interval begins above 0."]
    known = {"log"} if isinstance(values, IntervalSweep) else set()
    tagged = isinstance(values, IntervalSweep | RangeSweep | ChoiceSweep)
    if unknown := sorted(set(values.tags) - known if tagged else ()):
        return [f"{swept.input_line}: {unknown[0]!r} is no tag here; there is tag(log, interval(...))."]
    return []
