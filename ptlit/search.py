"""A sweep that searches: Hydra's side of it. Optuna's is ptlit/trials.py.

Hydra 1.3 takes a sweeper from `hydra_plugins` alone, a package at the top of the path, which a plain checkout
of ptlit does not have; and the plugin for Optuna that lies there wants an Optuna of years ago. So this one
goes by such a name, which commands make known (`offer_search`).
"""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ptlit.mistake import UserMistake
from ptlit.run_folder import RunFolder
from ptlit.search_space import SEARCH, any_value, distribution, judged_by, present_settings
from ptlit.signature import option_mistakes
from ptlit.sweep_jobs import ERROR_FILE, Done, leave_table, read_metrics
from ptlit.trials import Trials, open_trials

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class Search(Sweeper):
    """Its options stand in conf/hydra/sweeper/search.yaml."""

    __module__ = SEARCH.rpartition(".")[0]

    def __init__(
        self, n_trials: int, seed: int, storage: str | None, max_batch_size: int, params: Mapping[str, Any]
    ):
        self.n_trials, self.seed, self.storage = n_trials, seed, storage
        self.max_batch_size, self.params = max_batch_size, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: DictConfig = config
        self.loader = hydra_context.config_loader
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        said = OverridesParser.create(config_loader=self.loader).parse_overrides(lines)
        last = {each.key_or_group: each for each in said}.values()
        swept = [each for each in last if each.is_sweep_override()]
        self.fixed = [str(each.input_line) for each in last if not each.is_sweep_override()]
        one_of_them = self.loader.load_sweep_config(self.config, [*self.fixed, *map(any_value, swept)])
        self.monitor, mode = judged_by(one_of_them)
        unsearched = self.loader.load_sweep_config(self.config, self.fixed)

        self.folder = Path(self.config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        file = self.folder / "trials.jsonl" if self.storage is None else Path(self.storage)
        space = {each.get_key_element(): distribution(each) for each in swept}
        first = present_settings(unsearched, space)
        plan = [*self.fixed, *(str(each.input_line) for each in swept)]
        with open_trials(file, space, first, plan, mode, self.seed) as trials:
            try:
                for trial in trials.unfinished():
                    self.launch(trials, [trial], self.last_checkpoint(trial))
                while (left := self.n_trials - len(trials.all())) > 0:
                    batch = [trials.propose() for _ in range(min(left, self.max_batch_size))]
                    self.launch(trials, batch)
            except (KeyboardInterrupt, SystemExit):
                print(f"To go on with the search: the same command with hydra.sweep.dir={self.folder}")
                raise
            self.conclude(trials)

    def last_checkpoint(self, trial: "FrozenTrial") -> list[str]:
        """What makes a trial that was stopped go on, rather than begin again."""
        folder = RunFolder(self.folder / str(trial.number))
        return [f"resume='{folder.root}'"] if folder.has_checkpoint() else []

    def launch(self, trials: Trials, batch: Sequence["FrozenTrial"], more: Sequence[str] = ()) -> None:
        words = [[*self.fixed, *settings(each), *more] for each in batch]
        jobs = self.launcher.launch(words, initial_job_idx=batch[0].number)
        for trial, job in zip(batch, jobs, strict=True):
            score = job.return_value if job.status == JobStatus.COMPLETED else None
            trials.record(trial.number, score if score is not None and math.isfinite(score) else None)
        best = trials.best_first()[0]
        if best.value is not None:
            print(
                f"best of {len(trials.all())} trials: trial {best.number}, {self.monitor} {best.value:.4f}\n"
            )

    def conclude(self, trials: Trials) -> None:
        """Validation alone: a test split that helped to choose would test no more."""
        found, keys = trials.best_first(), ["trial", *trials.space]
        leave_table(self.folder, [self.done(each) for each in found], keys, [self.monitor, "seconds/fit"])
        failed = sum(each.value is None for each in found)
        if failed == len(found):
            raise UserMistake(
                f"All {failed} trials failed: see {ERROR_FILE} in the folders of {self.folder}."
            )
        if failed:
            print(
                f"{failed} of {len(found)} trials failed: see {ERROR_FILE} in their folders.", file=sys.stderr
            )
        words = [each for each in self.fixed if not each.startswith("sweep=")]
        print(f"the best, trial {found[0].number}, with {self.monitor} {found[0].value:.4f}:")
        print(f"python -m ptlit.train {shlex.join([*words, *settings(found[0])])}")

    def done(self, trial: "FrozenTrial") -> Done:
        folder = self.folder / str(trial.number)
        status = "failed" if trial.value is None else "done"
        settings = {key: str(value) for key, value in [("trial", trial.number), *trial.params.items()]}
        metrics = read_metrics(folder) if trial.value is not None else {}
        return Done(folder, trial.number, settings, status, metrics | {self.monitor: trial.value})


def offer_search() -> None:
    """Under the name that Hydra looks it up by."""
    plugins = Plugins.instance()  # imports hydra_plugins, if any other is installed
    package, name = SEARCH.rpartition(".")[0].split(".")
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = []
    sys.modules[f"{package}.{name}"] = sys.modules[__name__]
    plugins.register(Search)


def settings(trial: "FrozenTrial") -> list[str]:
    return [f"{key}={value}" for key, value in trial.params.items()]


def search_mistakes(cfg: DictConfig) -> list[str]:
    """Of the options of the search."""
    options: Any = OmegaConf.to_container(cfg.hydra.sweeper)
    options.pop("_target_")
    mistakes = option_mistakes("hydra.sweeper", options, Search)
    least = {"n_trials": 1, "seed": 0, "max_batch_size": 1}
    return mistakes + [
        f"hydra.sweeper.{key}={options[key]} must be {number} or more."
        for key, number in least.items()
        if isinstance(options.get(key), int) and options[key] < number
    ]
