"""The trials of a search: Optuna proposes their settings, a file of JSON Lines keeps them and how they did.

The first trial is of the settings that one has, so that a search is never worse than none. What another
proposes follows from the seed, its number and the trials before it alone: a search that was stopped goes on
as if it had not been.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy
from filelock import FileLock, Timeout

from ptlit.mistake import UserMistake

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Mode = Literal["min", "max"]
Space = dict[str, "BaseDistribution"]
STUDY = "search"  # its name in the file, which holds no other


def need_optuna() -> None:
    if find_spec("optuna") is None:
        raise UserMistake("A search needs a package more: pip install optuna.")


@contextmanager
def open_trials(
    file: Path, space: Space, first: Mapping[str, Any], plan: Sequence[str], mode: Mode, seed: int
) -> Iterator["Trials"]:
    """For one process at a time. `first` holds settings of the first trial, which proposes what it lacks;
    `plan` says what is searched, in words that a user would know again.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserMistake(f"{file}: another process is searching with it just now.") from error
    try:
        yield Trials(file, space, first, sorted(plan), mode, seed)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


class Trials:
    def __init__(
        self, file: Path, space: Space, first: Mapping[str, Any], plan: list[str], mode: Mode, seed: int
    ):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.space, self.first, self.mode, self.seed = space, first, mode, seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(file))),
            study_name=STUDY,
            direction="maximize" if mode == "max" else "minimize",
            load_if_exists=True,
        )
        if not self.study.user_attrs:
            self.study.set_user_attr("plan", plan)
        before = self.study.user_attrs["plan"]
        if before != plan:
            differ = [f"with {each}" for each in before if each not in plan]
            differ += [f"without {each}" for each in plan if each not in before]
            raise UserMistake(
                f"{file} holds another search ({', '.join(differ)}): give hydra.sweep.dir=<another folder>."
            )

    def all(self) -> list["FrozenTrial"]:
        """Of those that were proposed: the first waits a moment for it."""
        from optuna.trial import TrialState

        return [each for each in self.study.get_trials(deepcopy=False) if each.state != TrialState.WAITING]

    def unfinished(self) -> list["FrozenTrial"]:
        """Those that a stopped search left behind."""
        running = [each for each in self.all() if not each.state.is_finished()]
        for each in running:
            if each.params.keys() != self.space.keys():  # stopped before all was proposed
                self.record(each.number, None)
        return [each for each in running if each.params.keys() == self.space.keys()]

    def propose(self) -> "FrozenTrial":
        from optuna.samplers import TPESampler

        number = len(self.all())
        seed = int(numpy.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        self.study.sampler = TPESampler(seed=seed)
        if number == 0:
            self.study.enqueue_trial(dict(self.first), skip_if_exists=True)
        self.study.ask(self.space)
        return self.all()[number]

    def record(self, number: int, value: float | None) -> None:
        """None is that of a trial that failed."""
        from optuna.trial import TrialState

        self.study.tell(number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)

    def best_first(self) -> list["FrozenTrial"]:
        """Those that failed stand last; of equals, the earlier first."""
        sign = -1 if self.mode == "max" else 1
        return sorted(
            self.all(), key=lambda each: (each.value is None, sign * (each.value or 0), each.number)
        )
