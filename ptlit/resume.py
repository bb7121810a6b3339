"""resume=<run folder>: the command line of that run, said again, but for what is said anew."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from ptlit.mistake import UserMistake
from ptlit.run_folder import RunFolder

RESUME = "resume="


def resumed(argv: Sequence[str]) -> list[str]:
    """`argv` followed by the overrides of the run that it resumes; as it is if it resumes none."""
    folder = next((Path(word.removeprefix(RESUME)) for word in argv if word.startswith(RESUME)), None)
    if folder is None or str(folder) in ("null", "."):
        return list(argv)
    RunFolder(folder).last_checkpoint()
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise UserMistake(f"resume={folder}: {saved} is missing, which tells how that run was started.")
    new_keys = {_key(word) for word in argv}
    said = [str(word) for word in OmegaConf.load(saved)]
    return list(argv) + [word for word in said if _key(word) not in new_keys]


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+~")
