"""resume=<run folder>: the command line of that run, said again, but for what is said anew."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from ptlit.mistake import UserMistake
from ptlit.run_folder import RunFolder

RESUME = "resume="


def resumed(argv: Sequence[str]) -> list[str]:
    """`argv` followed by the overrides and the folder of the run it resumes; as it is if it resumes none.

    A command that names one folder both for its run and to go on with begins there, and goes on when it is
    said again: a job that is queued again has no other words.
    """
    said = [word.removeprefix(RESUME).strip("'\"") for word in argv if word.startswith(RESUME)]
    folder = Path(said[-1]) if said else None
    if folder is None or str(folder) in ("null", "."):
        return list(argv)
    new_keys = {_key(word) for word in argv}
    run = RunFolder(folder)
    if not run.has_checkpoint() and _own_folder(argv) == folder:
        return [word for word in argv if not word.startswith(RESUME)]
    run.last_checkpoint()
    if run.metrics.is_file() and not new_keys & {"trainer.max_steps", "trainer.max_epochs"}:
        raise UserMistake(
            f"resume={folder}: that run is finished; to go beyond it give trainer.max_steps=..."
        )
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise UserMistake(f"resume={folder}: {saved} is missing, which tells how that run was started.")
    words = [*map(str, OmegaConf.load(saved)), *_place_of_before(run)]
    again = [word for word in words if _key(word) not in new_keys]
    here = [] if "hydra.run.dir" in new_keys else [f"hydra.run.dir='{folder}'"]
    return [*argv, *again, *here]


def _place_of_before(run: RunFolder) -> list[str]:
    """A run that began when virtual tokens always stood before BOS goes on with them there."""
    data = OmegaConf.select(OmegaConf.load(run.config), "data") if run.config.is_file() else None
    if data is None or "before_bos" in data or not str(data.get("_target_")).startswith("ptlit.data."):
        return []
    return ["++data.before_bos=true"]


def _own_folder(argv: Sequence[str]) -> Path | None:
    said = [word.partition("=")[2].strip("'\"") for word in argv if _key(word) == "hydra.run.dir"]
    return Path(said[-1]) if said else None


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+~")
