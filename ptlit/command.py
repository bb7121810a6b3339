"""What every command does around its work: mistakes in one sentence, exit codes, nothing half-written."""

import errno
import functools
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ptlit.config import conf_folder
from ptlit.ending import ended_by_epochs
from ptlit.kept_memory import keep_freed_memory
from ptlit.mistake import UserMistake
from ptlit.overrides import in_our_words, preflight
from ptlit.own_folder import LOCK, held, own_folder
from ptlit.quoting import paths_quoted
from ptlit.resume import forgotten_if_refused, resumed
from ptlit.search import offer_search
from ptlit.sweep_jobs import ENDED, ERROR_FILE, keep_score, score_kept

Run = Callable[[DictConfig], float | None]

INTERRUPTED = 130  # what shells call a program that Ctrl+C ended
TERMINATED = 143  # and one that SIGTERM ended

OF_A_PLACE = (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC)
OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def command(config_name: str, run: Run) -> Callable[[], None]:
    """The entry point of a command: `main = command("train", train)`, whose config is conf/train.yaml."""

    def main() -> None:
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # what is no user's mistake keeps its whole traceback
        keep_freed_memory()
        job = Job(run)
        try:
            sys.argv[1:] = ended_by_epochs(resumed(paths_quoted(sys.argv[1:])))
            preflight(sys.argv[1:], config_name)
            offer_search()
            with held, forgotten_if_refused(sys.argv[1:]):
                hydra.main(config_path=str(conf_folder()), config_name=config_name, version_base="1.3")(job)()
                if job.failure is not None:
                    raise job.failure
        except UserMistake as mistake:
            sys.exit(str(mistake))
        except (HydraException, OmegaConfBaseException) as problem:
            sys.exit(in_our_words(problem))
        except OSError as problem:
            if problem.errno in OF_ROOM and problem.filename is None:
                reason = str(problem.strerror).lower()
                sys.exit(f"A file could not be written whole ({reason}): make room where it belongs.")
            if problem.errno not in OF_A_PLACE or problem.filename is None:
                raise
            reason = str(problem.strerror).lower()
            sys.exit(f"{problem.filename}: {reason}, so choose another place or mend this one.")
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except SystemExit as end:
            sys.exit(exit_code(end))

    return main


def exit_code(end: SystemExit) -> int | str | None:
    """Lightning answers Ctrl+C and SIGTERM by saving, and then exits with 1 and 0."""
    if isinstance(end.__context__, KeyboardInterrupt):
        return INTERRUPTED
    return TERMINATED if type(end).__name__ == "SIGTERMException" else end.code


class Job:
    """The task that Hydra calls. It raises no exception: Hydra would announce it in its way, and end a sweep.

    A single run's exception waits in `failure`; a sweep's is reported, kept in its folder and scored NaN.
    """

    def __init__(self, run: Run):
        self.run = run
        self.started = time.time()
        self.failure: Exception | None = None
        functools.update_wrapper(self, run)  # Hydra names the job after the module of the function

    def __call__(self, cfg: DictConfig) -> float | None:
        config = HydraConfig.get()
        folder = Path(config.runtime.output_dir)
        in_sweep = config.mode == RunMode.MULTIRUN
        if in_sweep:
            with own_folder(folder, "hydra.sweep.dir"):
                return self.in_folder(cfg, folder, in_sweep)
        if config.output_subdir is None:  # its folder is where the user is, and the user's
            return self.without_folder(cfg)
        return self.in_folder(cfg, folder, in_sweep)

    def in_folder(self, cfg: DictConfig, folder: Path, in_sweep: bool) -> float | None:
        (folder / ERROR_FILE).unlink(missing_ok=True)  # of a job that ran here before
        if in_sweep and (known := score_kept(folder, cfg)) is not None:
            print(f"It ended before; to run it again, remove {folder}\n", flush=True)
            return known
        is_new = made_since(folder, self.started)
        (folder / ENDED).unlink(missing_ok=True)
        try:
            score = self.run(cfg)
            if score is not None and math.isfinite(score) and not getattr(rank_zero_only, "rank", None):
                keep_score(folder, cfg, score)
            return score
        except Exception as error:
            if in_sweep:
                report(error, folder, HydraConfig.get().job.num)
                return math.nan
            self.failure = error
            if is_new:
                remove_unused(folder, self.started)
            return None
        except BaseException:
            if is_new:
                remove_unused(folder, self.started)
            raise

    def without_folder(self, cfg: DictConfig) -> float | None:
        try:
            return self.run(cfg)
        except Exception as error:
            self.failure = error
            return None


def report(error: Exception, folder: Path, number: int) -> None:
    is_mistake = isinstance(error, UserMistake)
    (folder / ERROR_FILE).write_text(f"{error}\n" if is_mistake else traceback.format_exc(), encoding="utf-8")
    said = (
        str(error) if is_mistake else f"{type(error).__name__}: {error} (traceback in {folder / ERROR_FILE})"
    )
    print(f"Job {number} failed, {folder.name}: {said}", file=sys.stderr, flush=True)


def made_since(folder: Path, started: float) -> bool:
    """Told by Hydra's notes, before any of them is added or removed."""
    notes = folder / ".hydra"
    return notes.is_dir() and notes.stat().st_mtime >= started


def remove_unused(folder: Path, started: float) -> None:
    """Remove a new run folder if it holds no more than Hydra's notes and what was logged."""
    others = [path for path in folder.iterdir() if path.name not in (".hydra", LOCK)]
    if all(path.suffix == ".log" and path.stat().st_mtime >= started for path in others):
        shutil.rmtree(folder)
        for parent in folder.parents[:2]:  # outputs/<experiment>, which the run made too
            if any(parent.iterdir()) or parent == Path.cwd():
                return
            parent.rmdir()
