"""The jobs of a sweep: what each left behind, as a table and as a file."""

import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from ptlit.whole_config import with_whole_paths
from ptlit.whole_file import write_json

ERROR_FILE = "error.txt"  # in the folder of a job that failed
ENDED = Path(".hydra") / "ended.json"  # in that of one that did not
LONG_NUMBER = re.compile(r"-?\d*\.\d{6,}(e-?\d+)?")
JUDGED = ("macro_f1", "accuracy", "perplexity", "token_accuracy", "loss")
TESTED, VALIDATED = ([f"{split}/{name}" for name in JUDGED] for split in ("test", "val"))


@dataclass(frozen=True)
class Done:
    """What a job left behind."""

    folder: Path
    number: int
    settings: dict[str, str]  # of the swept keys
    status: str
    metrics: Mapping[str, float | None]


def find_jobs(folder: Path, keys: Sequence[str], since: float) -> list[Done]:
    notes = [path for path in folder.rglob(".hydra/hydra.yaml") if path.stat().st_mtime >= since]
    return sorted((read_job(path.parent.parent, keys) for path in notes), key=lambda job: job.number)


def read_job(folder: Path, keys: Sequence[str]) -> Done:
    notes = OmegaConf.load(folder / ".hydra" / "hydra.yaml")
    pairs = [line.lstrip("+~").partition("=") for line in notes.hydra.overrides.task]
    settings = {key: value for key, _, value in pairs if key in keys}
    return Done(
        folder=folder,
        number=int(notes.hydra.job.num),
        settings=settings,
        status="failed" if (folder / ERROR_FILE).is_file() else "done",
        metrics=read_metrics(folder),
    )


def keep_score(folder: Path, cfg: DictConfig, score: float) -> None:
    """So that the same sweep, said again in the same folder, need not run the job again. A job that was
    stopped may have gone on by itself (resume=...), to the same end.
    """
    whole = cfg.copy()
    whole.resume = None
    write_json(folder / ENDED, {"score": score, "config": plain(whole)})


def score_kept(folder: Path, cfg: DictConfig) -> float | None:
    """That of a job which ended here with this very config; a file that cannot be read tells of none."""
    try:
        kept = json.loads((folder / ENDED).read_text(encoding="utf-8"))
        return kept["score"] if plain(OmegaConf.create(kept["config"])) == plain(cfg) else None
    except (OSError, ValueError, KeyError, TypeError, OmegaConfBaseException):
        return None


def plain(cfg: DictConfig) -> Any:
    return json.loads(json.dumps(OmegaConf.to_container(with_whole_paths(cfg), resolve=False)))


def read_metrics(folder: Path) -> dict[str, float]:
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def leave_overview(folder: Path, jobs: Sequence[Done], keys: Sequence[str]) -> None:
    """What was measured of all splits is in the file; a screen is narrower."""
    present = {name for job in jobs for name in job.metrics}
    measured = [name for name in (*TESTED, *VALIDATED) if name in present]
    tested = [name for name in measured if name in TESTED]
    shown = [name for name in measured if not tested or name in (*tested, "val/macro_f1")]
    write_csv(folder / "sweep.csv", jobs, keys, [*measured, "parameters/trainable", "seconds/fit"])
    print_table(folder, jobs, keys, [*shown, "seconds/fit"])


def leave_table(folder: Path, jobs: Sequence[Done], keys: Sequence[str], metrics: Sequence[str]) -> None:
    """On the screen and in the sweep's folder."""
    write_csv(folder / "sweep.csv", jobs, keys, metrics)
    print_table(folder, jobs, keys, metrics)


def print_table(folder: Path, jobs: Sequence[Done], keys: Sequence[str], metrics: Sequence[str]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(make_table(jobs, keys, metrics))
    console.print(f"the table as a file  {folder / 'sweep.csv'}", soft_wrap=True)
    console.print(f"tensorboard --logdir {folder}", soft_wrap=True)


def make_table(jobs: Sequence[Done], keys: Sequence[str], metrics: Sequence[str]) -> Table:
    table = Table(*keys, "status")
    for name in metrics:
        table.add_column(name, justify="right")
    for job in jobs:
        figures = [job.metrics.get(name) for name in metrics]
        shown = [
            "" if each is None else f"{each:.1f}" if abs(each) >= 10 else f"{each:.3f}" for each in figures
        ]
        settings = [shortened(job.settings.get(key, "")) for key in keys]
        table.add_row(*settings, job.status, *shown)
    return table


def write_csv(path: Path, jobs: Sequence[Done], keys: Sequence[str], metrics: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["folder", *keys, "status", *metrics])
        for job in jobs:
            settings = [job.settings.get(key, "") for key in keys]
            figures = [job.metrics.get(name, "") for name in metrics]
            rows.writerow([job.folder.relative_to(path.parent), *settings, job.status, *figures])


def shortened(setting: str) -> str:
    """A number that a search proposed has more figures than anyone reads; the file keeps them."""
    return f"{float(setting):.3g}" if LONG_NUMBER.fullmatch(setting) else setting
