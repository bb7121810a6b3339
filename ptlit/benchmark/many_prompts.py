"""Several tasks at once, each with a prompt of its own: rows of all of them in one batch, or task by task.

PEFT has one adapter at work at a time, so it reads the rows of each task by themselves. All read every text
once, and have to be as sure of every label. Texts of a batch are of one length, as PEFT needs them.
"""

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np

from ptlit.benchmark.agreement import TOLERANCE, Disagreement
from ptlit.benchmark.answers import Questions
from ptlit.benchmark.case import Case, Node, Nodes, checked_method, prompt_node
from ptlit.benchmark.figures import Measurement
from ptlit.benchmark.limit import MatrixProducts
from ptlit.benchmark.machine import check_device, check_peft, usable_threads
from ptlit.benchmark.report import Report
from ptlit.benchmark.rows import Rows
from ptlit.benchmark.tasks import SERVERS, TasksAtWork
from ptlit.benchmark.turns import take_turns
from ptlit.benchmark.worker import Worker
from ptlit.mistake import UserMistake


class ManyTasks:
    """The prompts are untrained: what they cost does not depend on what they have learned."""

    def __init__(
        self,
        batch_size: list[int],
        method: str = "ptuning_mlp",
        num_virtual_tokens: int = 20,
        tasks: int = 8,
        batches: int = 2,
        passes: int = 2,
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int | None = None,
    ):
        for key, counts in {
            "num_virtual_tokens": [num_virtual_tokens],
            "tasks": [tasks],
            "batch_size": batch_size,
            "batches": [batches],
            "passes": [passes],
        }.items():
            if min(counts, default=0) < 1:
                raise UserMistake(f"benchmark.{key}={counts} has to be 1 or more.")
        self.method, self.num_virtual_tokens = checked_method(method), num_virtual_tokens
        self.tasks, self.batch_sizes, self.batches, self.passes = tasks, batch_size, batches, passes
        self.device, self.threads = device, threads or usable_threads()

    def run(self, nodes: Nodes, folder: Path) -> None:
        check_device(self.device)
        check_peft()
        prompt = prompt_node(self.method, self.num_virtual_tokens)
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            adapters = [place / str(task) for task in range(self.tasks)]
            with Worker("the rows", self.threads, Rows, nodes) as rows:
                about = rows("about_lm")
                questions = {
                    size: rows("questions", size, self.batches, 1, "train")  # the most of one length
                    for size in self.batch_sizes
                }
                for task, adapter in enumerate(adapters):
                    rows("write_adapter", prompt, adapter, "vocabulary", task)
            check_labels(questions[self.batch_sizes[0]])
            report = stack.enter_context(Report(about, self.device, self.threads, folder))
            products = stack.enter_context(
                Worker("matrix products", self.threads, MatrixProducts, about.dtype, self.device)
            )
            for size, asked in questions.items():
                case = Case(
                    f"{self.tasks} tasks, labels", self.method, self.num_virtual_tokens, size, "bucketed"
                )
                report.say(f"{case}: {', '.join(SERVERS)} ...")
                report.add(
                    self.measure(
                        case, nodes, adapters, prompt, asked, products, TOLERANCE[about.dtype].outcome
                    )
                )

    def measure(
        self,
        case: Case,
        nodes: Nodes,
        adapters: list[Path],
        prompt: Node,
        questions: Questions,
        products: Worker,
        tolerance: float,
    ) -> list[Measurement]:
        with ExitStack() as stack:
            workers, began = {}, {}
            for engine in SERVERS:
                start = time.perf_counter()
                worker = Worker(engine, self.threads, TasksAtWork, engine, nodes, adapters, prompt, questions)
                workers[engine] = stack.enter_context(worker)
                worker("step", 0)
                began[engine] = time.perf_counter() - start
            passes, rates = take_turns(workers, products, len(questions.batches), 0, self.passes)
            check_probabilities(
                {engine: worker("probabilities") for engine, worker in workers.items()}, case, tolerance
            )
            peaks = {engine: worker("peaks_mb") for engine, worker in workers.items()}
        return [
            Measurement(
                engine=engine,
                case=case,
                passes=passes[engine],
                examples=sum(map(len, questions.batches)),
                real_tokens=sum(len(text) for batch in questions.batches for text in batch),
                operations=None,
                rates=rates,
                peak_mb=peaks[engine][1],
                loaded_mb=peaks[engine][0],
                seconds_to_first_step=began[engine],
            )
            for engine in SERVERS
        ]


def check_labels(questions: Questions) -> None:
    if any(len(label) > 1 for label in questions.labels):
        raise UserMistake(
            "benchmark=many_prompts needs labels of one token each, as PEFT scores them: give such words in "
            "data.label_words."
        )


def check_probabilities(found: Mapping[str, np.ndarray], case: Case, tolerance: float) -> None:
    """All against the first."""
    (reference, expected), *others = found.items()
    for engine, said in others:
        error = float(np.abs(said - expected).max())
        if not error <= tolerance:
            raise Disagreement(
                f"{case}: the probability of a label by {engine} differs from that by {reference} by "
                f"{error:.1e}, more than {tolerance:.0e}, so no speed is reported."
            )
