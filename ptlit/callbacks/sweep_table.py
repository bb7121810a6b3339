"""A sweep as a whole: its jobs' folders named by what was swept, and one table of how they did."""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ptlit.search_space import is_search
from ptlit.sweep_jobs import ERROR_FILE, find_jobs, leave_overview

SAFE = re.compile(r"[-+\w.]+")  # in the name of a folder
LONGEST = 150  # characters of a folder's name


class SweepTable(Callback):
    """Ends the process with 1 if a job failed: SystemExit is all that Hydra lets a callback raise."""

    def __init__(self) -> None:
        self.started = 0.0
        self.swept: dict[str, list[str]] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.started = time.time()
        self.swept = swept_values(config)
        mine = [str(line) for line in config.hydra.overrides.hydra]
        if not any(line.startswith("hydra.sweep.dir=") for line in mine) and "experiment" not in self.swept:
            # Said here once: left to the config, every job would work out a time of its own.
            config.hydra.sweep.dir = f"outputs/{experiment_of(config)}/{Path(config.hydra.sweep.dir).name}"
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{config.hydra.sweep.dir}'")
        named = is_search(config) or any(
            line.startswith(("hydra.sweep.subdir=", "hydra.job.config.")) for line in mine
        )
        if not named:
            config.hydra.overrides.hydra.extend(folder_names(config, self.swept))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if is_search(config):  # it makes its own
            return
        folder = Path(config.hydra.sweep.dir)
        jobs = find_jobs(folder, list(self.swept), since=self.started)
        failed = [job for job in jobs if job.status == "failed"]
        leave_overview(folder, jobs, list(self.swept))
        if failed:
            print(
                f"{len(failed)} of {len(jobs)} jobs failed: see {ERROR_FILE} in their folders.",
                file=sys.stderr,
            )
            raise SystemExit(1)


def swept_values(config: DictConfig) -> dict[str, list[str]]:
    """The keys that differ between jobs and, where they can be listed, their values."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    lines = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    overrides = {override.key_or_group: override for override in parse(lines)}  # the last one counts
    return {key: listed(each) for key, each in overrides.items() if each.is_sweep_override()}


def experiment_of(config: DictConfig) -> str:
    chosen = [
        each.value() for each in parse(config.hydra.overrides.task) if each.key_or_group == "experiment"
    ]
    return str(chosen[-1] if chosen else config.hydra.runtime.choices.experiment)


def parse(lines: Sequence[str]) -> list[Override]:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(lines))


def listed(override: Override) -> list[str]:
    return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []


def folder_names(config: DictConfig, swept: dict[str, list[str]]) -> list[str]:
    """Settings of Hydra's that name a job's folder by its swept values; by its number where those do not do.

    They join the overrides that every launcher composes its jobs with.
    """
    named = [key for key, values in swept.items() if values and all(map(SAFE.fullmatch, values))]
    if sum(len(key) + max(map(len, swept[key])) + 3 for key in named) > LONGEST:
        named = []
    if not named:
        return []
    told_apart = len(named) == len(swept) and all(
        len(set(values)) == len(values) for values in swept.values()
    )
    left_out = [
        each.key_or_group for each in parse(config.hydra.overrides.task) if each.key_or_group not in named
    ]
    name = "${hydra.job.override_dirname}" if told_apart else "${hydra.job.num},${hydra.job.override_dirname}"
    quoted = ",".join(f"'{key}'" for key in left_out)
    return [f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]", f"hydra.sweep.subdir='{name}'"]
