"""Several runs opened together, to answer the rows of one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ptlit.build import judging_accelerator
from ptlit.mistake import UserMistake
from ptlit.run import Run, open_run, read_config
from ptlit.run_folder import RunFolder

Runs = Mapping[str, Run]


def open_runs(
    folders: Mapping[str, Path],
    checkpoint: Literal["best", "last"],
    lm: str | None,
    trust_code: bool,
    averages: bool,
) -> dict[str, Run]:
    """By the same names; all have learned labels, and an ensemble is among them only for who `averages`."""
    for folder in folders.values():  # all are looked at before the first LM is loaded
        read_config(RunFolder(folder))
    runs = {name: open_run(folder, checkpoint, lm, trust_code, averages) for name, folder in folders.items()}
    for name, run in runs.items():
        if run.template is None or run.label_words is None:
            raise UserMistake(f"run={folders[name]} has learned text: it has no labels to answer with.")
    return runs


def setting(runs: Runs, key: str, given: str | None) -> Any:
    """An option of the data that is as it was in training, unless it is given."""
    if given is not None:
        return given
    return _same(
        {name: run.cfg.data.get(key) for name, run in runs.items()}, f"data.{key}", f"give {key}=..."
    )


def accelerator(runs: Runs, device: str | None) -> str:
    found = {name: judging_accelerator(run.cfg, device) for name, run in runs.items()}
    return _same(found, "trainer.accelerator", "give device=...")


def precision(runs: Runs) -> Any:
    """Of the training, in Lightning's words."""
    found = {name: run.precision for name, run in runs.items()}
    return _same(found, "trainer.precision", "answer them one at a time.")


def _same(found: Mapping[str, Any], key: str, remedy: str) -> Any:
    (first, value), *others = found.items()
    for name, other in others:
        if other != value:
            raise UserMistake(f"{first} was trained with {key}={value} and {name} with {other}: {remedy}")
    return value
