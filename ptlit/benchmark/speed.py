"""Training, side by side: every engine in a process of its own, all on the same batches, turn by turn."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from ptlit.benchmark.agreement import TOLERANCE, Tolerance, check_agreement, check_loss
from ptlit.benchmark.case import Case, Nodes, Row, checked_method, prompt_node
from ptlit.benchmark.engines import NEED_PEFT, WITHOUT_PROMPT, checked_engines
from ptlit.benchmark.figures import Measurement
from ptlit.benchmark.limit import MatrixProducts
from ptlit.benchmark.machine import check_device, check_peft, usable_threads
from ptlit.benchmark.measure import EngineAtWork, Judgement
from ptlit.benchmark.report import Report
from ptlit.benchmark.rows import AboutLM, Rows
from ptlit.benchmark.turns import take_turns
from ptlit.benchmark.worker import Worker
from ptlit.mistake import UserMistake

Batching = Literal["random", "bucketed"]
Turn = list[tuple[str, Case]]  # engines and their cases


class Speed:
    """The axes are lists: every combination of method, virtual tokens, batch size and batching is a case."""

    def __init__(
        self,
        methods: list[str],
        num_virtual_tokens: list[int],
        batch_size: list[int],
        batching: list[Batching],
        engines: list[str],
        bucketed_engines: list[str],
        batches: int = 3,
        passes: int = 3,
        warmup: int = 1,
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int | None = None,
        chat: dict[str, int] | None = None,
    ):
        for key, counts in {
            "num_virtual_tokens": num_virtual_tokens,
            "batch_size": batch_size,
            "batches": [batches],
            "passes": [passes],
            "threads": [threads or 1],
        }.items():
            if min(counts, default=0) < 1:
                raise UserMistake(f"benchmark.{key}={counts} has to be 1 or more.")
        self.engines: dict[str, list[str]] = {
            "random": checked_engines("engines", engines),
            "bucketed": checked_engines("bucketed_engines", bucketed_engines),
        }
        self.prompts = [(checked_method(name), p) for name in methods for p in num_virtual_tokens]
        self.batch_sizes, self.batching = batch_size, batching
        self.batches, self.passes, self.warmup = batches, passes, warmup
        self.device, self.threads, self.chat = device, threads or usable_threads(), chat

    def run(self, nodes: Nodes, folder: Path) -> None:
        check_device(self.device)
        if any(engine in NEED_PEFT for batching in self.batching for engine in self.engines[batching]):
            check_peft()
        with Worker("the rows", self.threads, Rows, nodes, self.chat) as rows:
            about: AboutLM = rows("about_lm")
            found = {size: rows("batches", size, self.batches) for size in self.batch_sizes}
            untrained = {size: rows("untrained_loss", found[size]["random"][0]) for size in self.batch_sizes}
        with (
            Report(about, self.device, self.threads, folder) as report,
            Worker("matrix products", self.threads, MatrixProducts, about.dtype, self.device) as products,
        ):
            for turn in self.turns():
                _, first = turn[0]
                batches = found[first.batch_size][first.batching]
                report.say(f"{first}: {', '.join(engine for engine, _ in turn)} ...")
                with ExitStack() as stack:
                    workers, judged, began = self.start(turn, nodes, batches, stack)
                    agree(turn, judged, untrained[first.batch_size], TOLERANCE[about.dtype])
                    passes, rates = take_turns(workers, products, len(batches), self.warmup, self.passes)
                    measured = [
                        Measurement(
                            engine=engine,
                            case=case,
                            passes=passes[engine],
                            examples=sum(map(len, batches)),
                            real_tokens=sum(len(row["input_ids"]) for batch in batches for row in batch),
                            operations=judged[engine].operations,
                            rates=rates,
                            peak_mb=workers[engine]("peak_mb"),
                            loaded_mb=judged[engine].loaded_mb,
                            seconds_to_first_step=began[engine],
                        )
                        for engine, case in turn
                    ]
                report.add(measured)

    def turns(self) -> Iterator[Turn]:
        """Which engines take turns, and at what. LoRA and full fine-tuning take part once a batch size."""
        for size in self.batch_sizes:
            for batching in self.batching:
                engines = self.engines[batching]
                for place, (method, length) in enumerate(self.prompts):
                    case = Case("training", method, length, size, batching)
                    prompted = [(engine, case) for engine in engines if engine not in WITHOUT_PROMPT]
                    context = [engine for engine in engines if engine in WITHOUT_PROMPT and place == 0]
                    alone = Case("training", None, None, size, batching)
                    yield prompted + [(engine, alone) for engine in context]

    def start(
        self, turn: Turn, nodes: Nodes, batches: Sequence[Sequence[Row]], stack: ExitStack
    ) -> tuple[dict[str, Worker], dict[str, Judgement], dict[str, float]]:
        """One after the other: each is alone while it loads and makes its first step."""
        workers, judged, seconds = {}, {}, {}
        for engine, case in turn:
            began = time.perf_counter()
            prompt = prompt_node(case.method, case.num_virtual_tokens) if case.method is not None else None
            worker = Worker(engine, self.threads, EngineAtWork, engine, nodes, prompt, batches)
            workers[engine] = stack.enter_context(worker)
            judged[engine] = worker("judge")
            seconds[engine] = time.perf_counter() - began
        return workers, judged, seconds


def agree(turn: Turn, judged: Mapping[str, Judgement], untrained: float, tolerance: Tolerance) -> None:
    """The soft prompts among themselves; LoRA and full fine-tuning begin as the LM alone."""
    prompted = {engine: judged[engine] for engine, case in turn if case.method is not None}
    check_agreement(prompted, str(turn[0][1]), tolerance)
    for engine, case in turn:
        if case.method is None and case.batching == "random":
            check_loss(engine, judged[engine].loss, "transformers", untrained, str(case), tolerance.outcome)
