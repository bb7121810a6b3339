"""From what was measured to figures: medians over passes through the same rows, and the range of these."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ptlit.benchmark.case import Case
from ptlit.benchmark.clock import Spent
from ptlit.benchmark.limit import Rates

Figures = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One engine in one case. A pass is once through all batches, which are the same for every engine."""

    engine: str
    case: Case
    passes: Sequence[Spent]
    examples: int  # in a pass
    real_tokens: int  # in a pass: neither virtual nor padding
    operations: float | None  # necessary in a pass
    rates: Sequence[Rates]  # of matrix products, measured before each pass
    peak_mb: float
    loaded_mb: float
    seconds_to_first_step: float

    def fraction_of_limit(self, device: str) -> float | None:
        return self._fraction(device, "")

    def fraction_of_pytorch_limit(self, device: str) -> float | None:
        """Of the limit for those who leave matrix products to PyTorch; another library may pass it."""
        return self._fraction(device, "pytorch_")

    def _fraction(self, device: str, library: str) -> float | None:
        """By CPU time where the CPU does the work: other programs then disturb neither side."""
        if self.operations is None:
            return None
        time = "cpu_second" if device == "cpu" else "second"
        best = median(getattr(rate, f"{library}per_{time}") for rate in self.rates)
        return self.operations / median(getattr(each, f"{time}s") for each in self.passes) / best


def figures(measured: Measurement, where: Figures) -> Figures:
    """One of the `rows` of benchmark.json; `where` is what all rows share."""

    def rate(amount: float, time: Callable[[Spent], float]) -> list[float]:
        return sorted(amount / time(each) for each in measured.passes)

    cpu = rate(measured.examples, lambda each: each.cpu_seconds)
    wall = rate(measured.examples, lambda each: each.seconds)
    return {
        "engine": measured.engine,
        **asdict(measured.case),
        **where,
        "examples_per_cpu_second": median(cpu),
        "examples_per_cpu_second_range": [cpu[0], cpu[-1]],
        "examples_per_second": median(wall),
        "examples_per_second_range": [wall[0], wall[-1]],
        "real_tokens_per_cpu_second": median(rate(measured.real_tokens, lambda each: each.cpu_seconds)),
        "real_tokens_per_second": median(rate(measured.real_tokens, lambda each: each.seconds)),
        "peak_mb": measured.peak_mb,
        "loaded_mb": measured.loaded_mb,
        "seconds_to_first_step": measured.seconds_to_first_step,
        "fraction_of_limit": measured.fraction_of_limit(where["device"]),
        "fraction_of_pytorch_limit": measured.fraction_of_pytorch_limit(where["device"]),
    }


def ratios(measured: Sequence[Measurement], where: Figures) -> list[Figures]:
    """ptlit over each peer: how many times its time and memory the peer takes for the same rows."""
    return [
        _ratio(ours, peer, where)
        for ours in measured
        for peer in measured
        if ours.engine == "ptlit" and peer.engine != "ptlit" and comparable(ours.case, peer.case)
    ]


def comparable(ours: Case, peer: Case) -> bool:
    """The same case; or the same rows, by ptlit in bucketed batches and by the peer in random ones."""
    same_prompt = peer.method is None or (peer.method, peer.num_virtual_tokens) == (
        ours.method,
        ours.num_virtual_tokens,
    )
    same_batching = peer.batching == ours.batching or (ours.batching, peer.batching) == ("bucketed", "random")
    same_work = (peer.task, peer.batch_size) == (ours.task, ours.batch_size)
    return same_prompt and same_batching and same_work


def _ratio(ours: Measurement, peer: Measurement, where: Figures) -> Figures:
    pairs = list(zip(ours.passes, peer.passes, strict=True))
    cpu = sorted(theirs.cpu_seconds / own.cpu_seconds for own, theirs in pairs)
    wall = sorted(theirs.seconds / own.seconds for own, theirs in pairs)
    return {
        "engine": "ptlit",
        "over": peer.engine,
        **asdict(ours.case),
        "batching_of_peer": peer.case.batching,
        **where,
        "cpu_time": median(cpu),
        "cpu_time_range": [cpu[0], cpu[-1]],
        "time": median(wall),
        "time_range": [wall[0], wall[-1]],
        "memory": peer.peak_mb / ours.peak_mb,
    }
