"""What lives in a worker: one learner goes through its examples, and is judged on the way and at the end."""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader

from ptlit.benchmark.case import Nodes, made
from ptlit.benchmark.clock import peak_mb
from ptlit.benchmark.judging import WORST, Judge, Scores
from ptlit.benchmark.learners import LEARNERS, Given, Learner
from ptlit.benchmark.trial import Plan, Recipe, Trial
from ptlit.data import Batch, TextData
from ptlit.data.collate import Collate, IndexedRow
from ptlit.data.sampler import Batches
from ptlit.data.splitting import Traits, fold_by_content, key_of
from ptlit.lm import FrozenLM

Point = dict[str, Any]  # of a curve


class LearnerAtWork:
    def __init__(self, trial: Trial, nodes: Nodes, recipe: Recipe | None, plan: Plan):
        self.trial, self.plan, self.device = trial, plan, torch.device(nodes.device)
        size = plan.batch_of(recipe)
        lm: FrozenLM = made(nodes.model).to(self.device)
        limits = {"limit": plan.limit, "val_limit": plan.val_limit, "test_limit": plan.test_limit}
        data: TextData[Any] = made({**nodes.data, **limits}, tokenizer=lm.tokenizer, seed=nodes.seed)
        data.setup()
        train, val, test = splits(data, trial, plan, nodes.seed)
        self.batches = ordered(train, plan.examples_of(len(train)), size, trial.seed, data.stratified)
        collate = Collate(lm.tokenizer.pad_token_id or 0)
        self.learner: Learner = resolve_name(LEARNERS[trial.engine])(
            Given(lm, data, train, trial, plan, recipe, len(self.batches))
        )
        self.loader: DataLoader[Batch] = DataLoader(train, batch_sampler=self.batches, collate_fn=collate)  # type: ignore[arg-type]
        self.val, self.test = (
            Judge(rows, data.label_words, collate, size, self.device) for rows in (val, test)
        )

    def learn(self) -> dict[str, Any]:
        """Tested once: what was best on validation, or without any what came last."""
        learned = self.learner.learned
        with tempfile.TemporaryDirectory() as folder:
            every = self.plan.validate_every if self.val.rows else len(self.loader.dataset)  # type: ignore[arg-type]
            course = Course(self.learner, self.val, every, Path(folder) / "best.pt")
            if learned:
                course.begin()
                self.learner.fit(self.loader, course.step)
                course.end()
            elif self.val.rows:
                course.judge()
            peak = peak_mb(self.device)
            course.back_to_the_best()
        return {
            "trainable": sum(each.numel() for each in learned.values()),
            "order": hashlib.sha256(str(course.met).encode()).hexdigest()[:16] if learned else None,
            "curve": course.points,
            "best": course.best,
            "train_loss": course.recent_loss(),
            "test": self.test.judge(self.learner).metrics,
            "peak_mb": peak,
        }


class Course:
    """How one learner got on. Judging is left out of the time."""

    def __init__(self, learner: Learner, val: Judge, every: int, kept: Path):
        self.learner, self.val, self.every, self.kept = learner, val, every, kept
        self.points: list[Point] = []
        self.best: Point | None = None
        self.best_score = WORST
        self.met: list[int] = []  # rows, in the order of training
        self.judged_at = 0
        self.losses: list[tuple[float, int]] = []  # since the last point: of a step, and of how many rows
        self.spent, self.cpu_spent = 0.0, 0.0

    def begin(self) -> None:
        if self.val.rows:
            self.judge()
        self._go()

    @property
    def examples(self) -> int:
        return len(self.met)

    def step(self, loss: float, rows: list[int]) -> None:
        if self.examples >= self.judged_at + self.every:
            self.losses.clear()
            self.judged_at = self.examples
        self.losses.append((loss, len(rows)))
        self.met += rows
        if self.val.rows and self.examples >= self.judged_at + self.every:
            self._pause()
            self.judge()
            self._go()

    def end(self) -> None:
        self._pause()
        if self.val.rows and self.points[-1]["examples"] < self.examples:
            self.judge()
        if not self.val.rows:
            self.points.append(self._point({}))

    def judge(self) -> None:
        with self.learner.as_kept():
            found: Scores = self.val.judge(self.learner)
            self.points.append(self._point(found.metrics))
            if found.score > self.best_score:
                self.best_score, self.best = found.score, self.points[-1]
                torch.save({name: each.detach() for name, each in self.learner.learned.items()}, self.kept)

    @torch.no_grad()
    def back_to_the_best(self) -> None:
        if self.kept.is_file():
            for name, value in torch.load(self.kept, weights_only=True).items():
                self.learner.learned[name].copy_(value)

    def recent_loss(self) -> float | None:
        rows = sum(count for _, count in self.losses)
        return sum(loss * count for loss, count in self.losses) / rows if rows else None

    def _point(self, metrics: dict[str, float]) -> Point:
        return {
            "examples": self.examples,
            "seconds": self.spent,
            "cpu_seconds": self.cpu_spent,
            "train_loss": self.recent_loss(),
            **metrics,
        }

    def _go(self) -> None:
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def _pause(self) -> None:
        self.spent += time.perf_counter() - self.began
        self.cpu_spent += time.process_time() - self.cpu_began


def splits(
    data: TextData[Any], trial: Trial, plan: Plan, seed: int
) -> tuple[Sequence[IndexedRow], Sequence[IndexedRow], Sequence[IndexedRow]]:
    """To learn from, to validate on, to test on. Folds are of the training rows; none is left to validate."""
    if plan.folds is None or trial.fold is None:
        return data.encoded["train"], data.encoded["val"], data.encoded["test"]
    rows = data.encoded["train"]
    keys = numpy.array([key_of(str(row["input_ids"]), seed) for row in rows], numpy.uint64)
    labels, strata = numpy.unique([row["label"] for row in rows], return_inverse=True)
    others, here = fold_by_content(Traits(keys, strata, tuple(map(str, labels))), plan.folds, trial.fold)
    return [rows[place] for place in others], [], [rows[place] for place in here]


def ordered(
    rows: Sequence[IndexedRow], examples: int, size: int, seed: int, stratified: bool
) -> list[list[int]]:
    """The batches of training itself, epoch after epoch, until the examples are used up."""
    lengths, classes = [len(row["input_ids"]) for row in rows], [row["label"] for row in rows]
    batches = Batches(lengths, size, classes=classes, stratified=stratified, seed=seed)
    left = examples
    found: list[list[int]] = []
    for epoch in count():
        batches.set_epoch(epoch)
        for batch in batches:
            if left <= 0:
                return found
            found.append(batch[:left])
            left -= len(found[-1])
    raise AssertionError("epochs never end")
