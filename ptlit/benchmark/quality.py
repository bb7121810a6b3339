"""How well, and how soon: what everybody reaches with the same examples in the same order.

ptlit has its experiments' settings. The others have the best of several learning rates, chosen on the
validation rows. All are judged alike, on test rows, where they were best on validation, and of several rates
that of the best alone is told. A run folder grows: more engines, methods, rates and seeds, by later commands
with the same settings, join the same table.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ptlit.benchmark.case import Nodes, checked_method
from ptlit.benchmark.learners import (
    NEED_LABELS,
    NEED_PEFT,
    PROMPTS,
    checked_learners,
)
from ptlit.benchmark.learning import LearnerAtWork
from ptlit.benchmark.machine import check_device, check_peft, usable_threads
from ptlit.benchmark.quality_report import QualityReport
from ptlit.benchmark.shipped import shipped
from ptlit.benchmark.trial import Plan, Recipe, Trial
from ptlit.benchmark.worker import Worker
from ptlit.mistake import UserMistake

DONE = "trials.jsonl"  # in the run folder: a line for each that is finished


class Quality:
    """Every trial is a process of its own. A trial that is finished is not done again in the same folder."""

    def __init__(
        self,
        methods: list[str],
        engines: list[str],
        seeds: list[int],
        peft_lrs: dict[str, list[float]],  # of each method
        lora_lrs: list[float],
        full_lrs: list[float],
        examples: int | None = 2400,
        epochs: int | None = None,
        batch_size: int | None = None,
        validate_every: int = 160,
        num_virtual_tokens: int = 20,
        shots: int = 4,
        limit: int | None = None,
        val_limit: int | None = 200,
        test_limit: int | None = None,
        folds: int | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int | None = None,
    ):
        for key, count in {
            "examples": examples,
            "epochs": epochs,
            "batch_size": batch_size,
            "validate_every": validate_every,
            "num_virtual_tokens": num_virtual_tokens,
            "shots": shots,
            "threads": threads,
        }.items():
            if count is not None and count < 1:
                raise UserMistake(f"benchmark.{key}={count} has to be 1 or more.")
        if (examples is None) == (epochs is None):
            raise UserMistake(
                "benchmark.examples and benchmark.epochs both say how long: give one, and null for the other."
            )
        if folds is not None and folds < 2:
            raise UserMistake(f"benchmark.folds={folds} has to be 2 or more.")
        if not seeds:
            raise UserMistake("benchmark.seeds=[] makes no run: give [1], for example.")
        self.methods = [checked_method(name) for name in dict.fromkeys(methods)]
        self.engines, self.seeds = checked_learners(engines), list(dict.fromkeys(seeds))
        self.peft_lrs, self.lrs = peft_lrs, {"lora": lora_lrs, "full": full_lrs}
        for engine in self.engines:
            for method in self.methods_of(engine):
                if not self.rates(engine, method):
                    key = f"{engine}_lrs.{method}" if method else f"{engine}_lrs"
                    raise UserMistake(f"benchmark.{key} is empty: {engine} needs a learning rate to try.")
        self.device, self.threads = device, threads or usable_threads()
        self.plan = Plan(
            examples=examples,
            epochs=epochs,
            batch_size=batch_size,
            validate_every=validate_every,
            num_virtual_tokens=num_virtual_tokens,
            shots=shots,
            limit=limit,
            val_limit=val_limit,
            test_limit=test_limit,
            folds=folds,
        )

    def run(self, nodes: Nodes, folder: Path) -> None:
        check_device(self.device)
        if set(self.engines) & set(NEED_PEFT):
            check_peft()
        done = Done(folder / DONE, settings_of(nodes, self.plan, self.threads))
        report = QualityReport(nodes, self.plan, self.device, self.threads)
        trials = [trial for trial in self.trials() if has_answers(trial, nodes)]
        for number, trial in enumerate(trials, start=1):
            if done.has(trial):
                continue
            recipe = shipped(trial.method) if trial.engine == "ptlit" and trial.method else None
            report.say(f"{number} of {len(trials)}: {trial} ...")
            given = trial, nodes, recipe, self.plan
            with Worker(str(trial), self.threads, LearnerAtWork, *given) as worker:
                found = done.add(trial, recipe, worker("learn"))
            report.say(f"    {summary_of(found)}")
            report.write(done.found, folder)
        report.close(done.found, folder)

    def trials(self) -> Iterator[Trial]:
        """Seed after seed, so that what is stopped early has something of everything."""
        for seed in self.seeds:
            for engine in self.engines:
                for method in self.methods_of(engine):
                    for lr in self.rates(engine, method):
                        for fold in range(self.plan.folds) if self.plan.folds is not None else [None]:
                            yield Trial(engine, method, lr, seed, fold)

    def rates(self, engine: str, method: str | None) -> Sequence[float | None]:
        return self.peft_lrs.get(str(method), []) if engine == "peft" else self.lrs.get(engine, [None])

    def methods_of(self, engine: str) -> list[str] | list[None]:
        if engine not in PROMPTS:
            return [None]
        if engine == "ptlit":
            return self.methods
        from ptlit.benchmark.learners.plain import SAME_IN_PEFT

        return list(dict.fromkeys(SAME_IN_PEFT.get(method, method) for method in self.methods))


class Done:
    """What is finished, in a file that grows by whole lines; but for experiments that have changed since."""

    def __init__(self, path: Path, settings: str):
        self.path, self.settings = path, settings
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last may have been cut off
        found: list[dict[str, Any]] = [json.loads(line) for line in whole]
        if any(each["settings"] != settings for each in found):
            raise UserMistake(
                f"{path} holds trials with other settings (data, model, examples, threads ...): choose "
                "another hydra.run.dir, or remove it."
            )
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")
        methods = {each["method"] for each in found if each["recipe"]}
        now = {name: json.loads(json.dumps(shipped(name))) for name in methods}
        self.found = [each for each in found if not each["recipe"] or each["recipe"] == now[each["method"]]]

    def has(self, trial: Trial) -> bool:
        return any(all(each[key] == value for key, value in asdict(trial).items()) for each in self.found)

    def add(self, trial: Trial, recipe: Recipe | None, result: dict[str, Any]) -> dict[str, Any]:
        found = {**asdict(trial), "recipe": recipe, "settings": self.settings, **result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        self.found.append(found)
        return found


def settings_of(nodes: Nodes, plan: Plan, threads: int) -> str:
    """What has to be the same for trials to be compared; more seeds, methods and rates can join later."""
    same = asdict(plan), nodes.model, nodes.data, nodes.seed, nodes.device, threads
    said = json.dumps(same, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def has_answers(trial: Trial, nodes: Nodes) -> bool:
    """Where text is learned nobody can answer with labels."""
    return trial.engine not in NEED_LABELS or "label_column" in nodes.data


def summary_of(found: dict[str, Any]) -> str:
    """Nothing of the test rows yet, where validation is still to say which rate is reported."""
    split, scores = ("val", found["best"]) if found["best"] else ("test", found["test"])
    told = ", ".join(f"{name} {scores[name]:.3f}" for name in found["test"])
    spent = f" in {found['curve'][-1]['seconds']:.0f} s" if found["trainable"] else ""
    return f"{split} {told}{spent}, peak {found['peak_mb']:,.0f} MB"
