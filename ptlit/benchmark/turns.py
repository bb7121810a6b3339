"""Fair turns: every worker takes the same step before any of them takes the next."""

from collections.abc import Mapping

from ptlit.benchmark.clock import Spent, total
from ptlit.benchmark.limit import Rates
from ptlit.benchmark.worker import Worker


def take_turns(
    workers: Mapping[str, Worker], products: Worker, batches: int, warmup: int, passes: int
) -> tuple[dict[str, list[Spent]], list[Rates]]:
    """What each spent in each pass through all batches, and the rate of matrix products before each pass."""
    step = 0

    def all_step() -> dict[str, Spent]:
        nonlocal step
        index, step = step % batches, step + 1
        return {engine: worker("step", index) for engine, worker in workers.items()}

    for _ in range(warmup):
        all_step()
    spent: dict[str, list[Spent]] = {engine: [] for engine in workers}
    rates: list[Rates] = []
    for _ in range(passes):
        rates.append(products("rates"))
        steps = [all_step() for _ in range(batches)]
        for engine in workers:
            spent[engine].append(total(taken[engine] for taken in steps))
    return spent, rates
