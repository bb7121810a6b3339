"""A finished prompt at work, side by side with PEFT: naming the labels of a file of texts, and writing on.

PEFT has no label scores: it generates the label. Both have to give the same answers, so the texts of a batch
are of one length: behind padding on the left, PEFT's answers are no longer those to the text alone. Who takes
texts as they come has to give them to PEFT one by one, as its tutorials do: an engine of its own.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from ptlit.benchmark.agreement import TOLERANCE, Disagreement, Tolerance
from ptlit.benchmark.answers import ANSWERERS, AnswersAtWork, Questions, Tokens
from ptlit.benchmark.case import Case, Node, Nodes, checked_method, prompt_node
from ptlit.benchmark.figures import Measurement
from ptlit.benchmark.limit import MatrixProducts
from ptlit.benchmark.machine import check_device, check_peft, usable_threads
from ptlit.benchmark.report import Report
from ptlit.benchmark.rows import Rows
from ptlit.benchmark.turns import take_turns
from ptlit.benchmark.worker import Worker
from ptlit.mistake import UserMistake
from ptlit.run_folder import RunFolder


@dataclass(frozen=True)
class Work:
    """What all engines are given, and how far their answers may differ."""

    nodes: Nodes
    adapter: Path
    prompt: Node
    questions: Questions
    tolerance: Tolerance


class Inference:
    """With `run` the trained prompt of that run; without, `method` as it starts from the instruction."""

    def __init__(
        self,
        method: str = "ptuning_mlp",
        num_virtual_tokens: int = 20,
        run: str | None = None,
        batch_size: int = 8,
        batches: int = 6,
        new_tokens: int = 16,
        passes: int = 2,
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int | None = None,
    ):
        counts = {"batches": batches, "batch_size": batch_size, "new_tokens": new_tokens, "passes": passes}
        for key, value in counts.items():
            if value < 1:
                raise UserMistake(f"benchmark.{key}={value} has to be 1 or more.")
        self.trained = Path(run) if run is not None else None
        self.method, self.num_virtual_tokens = checked_method(method), num_virtual_tokens
        self.batch_size, self.batches, self.new_tokens, self.passes = batch_size, batches, new_tokens, passes
        self.device, self.threads = device, threads or usable_threads()

    def run(self, nodes: Nodes, folder: Path) -> None:
        check_device(self.device)
        check_peft()
        if self.trained is not None:
            prompt, self.method, self.num_virtual_tokens = trained_prompt(self.trained)
        else:
            prompt = prompt_node(self.method, self.num_virtual_tokens)
        with ExitStack() as stack:
            adapter = (
                RunFolder(self.trained).adapter
                if self.trained
                else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            )
            with Worker("the rows", self.threads, Rows, nodes) as rows:
                about = rows("about_lm")
                questions = rows("questions", self.batch_size, self.batches, self.new_tokens)
                if self.trained is None:
                    rows("write_adapter", prompt, adapter)
            report = stack.enter_context(Report(about, self.device, self.threads, folder))
            products = stack.enter_context(
                Worker("matrix products", self.threads, MatrixProducts, about.dtype, self.device)
            )
            work = Work(nodes, adapter, prompt, questions, TOLERANCE[about.dtype])
            for task in ("classification", "generation"):
                report.add(self.measure(task, work, products, report))

    def measure(self, task: str, work: Work, products: Worker, report: Report) -> list[Measurement]:
        questions = work.questions
        case = Case(task, self.method, self.num_virtual_tokens, self.batch_size, "bucketed")
        report.say(f"{case}: {', '.join(ANSWERERS)} ...")
        with ExitStack() as stack:
            workers, began, measured = {}, {}, []
            for engine in ANSWERERS:
                start = time.perf_counter()
                given = (engine, task, work.nodes, work.adapter, work.prompt, questions)
                worker = Worker(engine, self.threads, AnswersAtWork, *given)
                workers[engine] = stack.enter_context(worker)
                worker("step", 0)
                began[engine] = time.perf_counter() - start
            passes, rates = take_turns(workers, products, len(questions.batches), 0, self.passes)
            said = {engine: worker("said") for engine, worker in workers.items()}
            for peer in [engine for engine in said if engine != "ptlit"]:
                report.say(compared(task, said["ptlit"], said[peer], questions.labels, peer, work.tolerance))
            for engine, worker in workers.items():
                loaded_mb, peak_mb = worker("peaks_mb")
                measured.append(
                    Measurement(
                        engine=engine,
                        case=case,
                        passes=passes[engine],
                        examples=len(said[engine]),
                        real_tokens=sum(len(text) for batch in questions.batches for text in batch),
                        operations=None,
                        rates=rates,
                        peak_mb=peak_mb,
                        loaded_mb=loaded_mb,
                        seconds_to_first_step=began[engine],
                    )
                )
        return measured


def compared(
    task: str,
    ours: Sequence[Tokens],
    theirs: Sequence[Tokens],
    labels: Sequence[Tokens],
    peer: str = "peft",
    tolerance: Tolerance = TOLERANCE["float32"],
) -> str:
    """How the answers compare, in a sentence; a Disagreement where they may not differ.

    A generated label of one token is the most likely of all tokens, so it is the most likely label too. What
    was generated and is no label has nothing to be compared with; of several tokens the first decides.
    """
    if task == "generation":
        differing = [place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
        if len(differing) > tolerance.replies * len(ours):
            raise Disagreement(
                f"{task}: ptlit and {peer} write on differently after {len(differing)} of {len(ours)} texts, "
                "so no speed is reported."
            )
        alike = f"all {len(ours)}" if not differing else f"{len(ours) - len(differing)} of {len(ours)}"
        return f"{task}: {peer} writes the same tokens as ptlit after {alike} texts"
    pairs = [(own, their) for own, their in zip(ours, theirs, strict=True) if their in labels]
    same = sum(own == their for own, their in pairs)
    if same < len(pairs) and all(len(label) == 1 for label in labels):
        raise Disagreement(
            f"{task}: ptlit gives another label than {peer} to {len(pairs) - same} of {len(pairs)} texts, "
            "so no speed is reported."
        )
    return (
        f"{task}: {peer} generates a label for {len(pairs)} of {len(ours)} texts, {same} times that of ptlit"
    )


def trained_prompt(run: Path) -> tuple[Node, str, int]:
    """A run's prompt as its config names it, the method and the number of virtual tokens."""
    folder = RunFolder(run)
    if not folder.config.is_file() or not folder.adapter.is_dir():
        raise UserMistake(f"benchmark.run={run} is no run folder with an adapter in it.")
    node = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["prompt"]
    del node["init"]
    return node, node["_target_"].rpartition(".")[2], node["num_virtual_tokens"]
