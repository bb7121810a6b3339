"""From what engines spent to what the benchmark says: fractions, ratios, the table and the picture."""

from collections.abc import Callable

from ptlit.benchmark.case import Case
from ptlit.benchmark.clock import Spent
from ptlit.benchmark.figures import Figures, Measurement, figures, ratios
from ptlit.benchmark.limit import Rates
from ptlit.benchmark.report import drawn, times_over
from ptlit.benchmark.turns import take_turns

RANDOM = Case("training", "ptuning_mlp", 20, 8, "random")
WHERE: Figures = {"dtype": "float32", "device": "cpu", "model": "lm"}
RATES = Rates(per_second=80.0, per_cpu_second=40.0, pytorch_per_second=20.0, pytorch_per_cpu_second=10.0)


def measured(engine: str, *seconds: float, case: Case = RANDOM, peak_mb: float = 1000.0) -> Measurement:
    """Two threads, so that twice the time of the clock is CPU time."""
    return Measurement(
        engine=engine,
        case=case,
        passes=[Spent(seconds=each, cpu_seconds=2 * each) for each in seconds],
        examples=24,
        real_tokens=960,
        operations=60.0,
        rates=[RATES],
        peak_mb=peak_mb,
        loaded_mb=900.0,
        seconds_to_first_step=1.0,
    )


def test_a_ratio_is_how_many_times_as_long_the_other_takes() -> None:
    (found,) = ratios(
        [measured("ptlit", 1.0, 2.0, 4.0), measured("peft", 4.0, 6.0, 20.0, peak_mb=3000.0)], WHERE
    )
    assert (found["over"], found["time"], found["time_range"]) == ("peft", 4.0, [3.0, 5.0])  # pass by pass
    assert (found["cpu_time"], found["memory"]) == (4.0, 3.0)


def test_only_the_same_work_is_compared() -> None:
    """LoRA has no prompt, so it stands beside each; rows of like length may be set against rows by chance."""
    bucketed = Case("training", "ptuning_mlp", 20, 8, "bucketed")
    longer = Case("training", "ptuning_mlp", 100, 8, "random")
    alone = Case("training", None, None, 8, "random")
    found = ratios(
        [
            measured("ptlit", 1.0),
            measured("peft", 3.0),
            measured("lora", 2.0, case=alone),
            measured("ptlit", 0.5, case=bucketed),
            measured("peft", 2.0, case=bucketed),
            measured("peft", 9.0, case=longer),
            measured("peft", 9.0, case=Case("training", "ptuning_mlp", 20, 32, "random")),
        ],
        WHERE,
    )
    assert [(each["batching"], each["over"], each["batching_of_peer"], each["time"]) for each in found] == [
        ("random", "peft", "random", 3.0),
        ("random", "lora", "random", 2.0),
        ("bucketed", "peft", "random", 6.0),
        ("bucketed", "lora", "random", 4.0),
        ("bucketed", "peft", "bucketed", 4.0),
    ]


def test_rates_and_the_share_of_the_limit() -> None:
    row = figures(measured("ptlit", 1.0, 3.0, 2.0), WHERE)
    assert (row["examples_per_second"], row["examples_per_second_range"]) == (12.0, [8.0, 24.0])
    assert (row["examples_per_cpu_second"], row["real_tokens_per_second"]) == (6.0, 480.0)
    assert row["fraction_of_limit"] == 60.0 / 4.0 / 40.0  # operations in the CPU time of the middle pass
    assert row["fraction_of_pytorch_limit"] == 60.0 / 4.0 / 10.0
    on_gpu = figures(measured("ptlit", 1.0, 3.0, 2.0), WHERE | {"device": "cuda"})
    assert on_gpu["fraction_of_limit"] == 60.0 / 2.0 / 80.0  # by the clock, where the CPU only waits


def test_the_table_has_the_peers_time_over_ptlits() -> None:
    both = [measured("ptlit", 1.0), measured("peft", 3.0)]
    ours, theirs = (figures(each, WHERE) for each in both)
    compared = ratios(both, WHERE)
    assert times_over(theirs, "random", compared) == "3.00x"
    assert times_over(ours, "random", compared) == times_over(theirs, "bucketed", compared) == ""


def test_the_picture_has_speed_and_memory_of_each() -> None:
    rows = [figures(each, WHERE) for each in (measured("ptlit", 1.0), measured("peft", 3.0, peak_mb=2000.0))]
    speed, memory = drawn(rows, "a machine").axes
    assert speed.get_title() == "examples per cpu second" and "peak MB" in memory.get_title()
    assert [bar.get_width() for bar in speed.patches] == [row["examples_per_cpu_second"] for row in rows]
    assert [bar.get_width() for bar in memory.patches] == [1000.0, 2000.0, 900.0, 900.0]  # and once loaded


def test_each_takes_a_step_before_any_takes_the_next() -> None:
    taken: list[object] = []

    def worker(name: str, seconds: float) -> Callable[[str, int], Spent]:
        def step(work: str, batch: int) -> Spent:
            taken.append((name, batch))
            return Spent(seconds, 2 * seconds)

        return step

    def products(work: str) -> Rates:
        taken.append(work)
        return RATES

    engines = {"ptlit": worker("ptlit", 1.0), "peft": worker("peft", 3.0)}
    spent, rates = take_turns(engines, products, batches=2, warmup=1, passes=2)  # type: ignore[arg-type]
    turns = [[("ptlit", batch), ("peft", batch)] for batch in (0, 1, 0, 1, 0)]
    assert taken == [*turns[0], "rates", *turns[1], *turns[2], "rates", *turns[3], *turns[4]]
    assert spent == {"ptlit": [Spent(2.0, 4.0)] * 2, "peft": [Spent(6.0, 12.0)] * 2} and rates == [RATES] * 2
