"""resume=<run folder>: the command line of that run, said again, but for what is said anew."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf

from ptlit.data.chat_template import is_file_name
from ptlit.ending import EPOCHS, STEPS
from ptlit.mistake import UserMistake
from ptlit.own_folder import FolderTaken
from ptlit.quoting import key_of, quoted, unquoted
from ptlit.run_folder import RunFolder
from ptlit.sweep_jobs import ERROR_FILE
from ptlit.whole_config import NAMING_PATHS

RESUME = "resume="
CHAT_TEMPLATE = "data.chat_template"
ENDS = {STEPS, EPOCHS, "trainer.max_time"}


def resumed(argv: Sequence[str]) -> list[str]:
    """`argv` followed by the overrides and the folder of the run it resumes; as it is if it resumes none.

    A command that names one folder both for its run and to go on with begins there, and goes on when it is
    said again: a job that is queued again has no other words.
    """
    folder = _folder_resumed(argv)
    if folder is None:
        return list(argv)
    argv = [f"{RESUME}{quoted(str(folder))}" if word.startswith(RESUME) else word for word in argv]
    new_keys = {key_of(word) for word in argv}
    run = RunFolder(folder)
    if not run.has_checkpoint() and _own_folder(argv) == folder.resolve():
        return [word for word in argv if not word.startswith(RESUME)]
    run.last_checkpoint()
    if run.metrics.is_file() and not new_keys & ENDS:
        raise UserMistake(
            f"resume={folder}: that run is finished; to go beyond it give trainer.max_steps=..."
            " (or +trainer.max_time=..., where that ended it)."
        )
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise UserMistake(f"resume={folder}: {saved} is missing, which tells how that run was started.")
    if "sweep" in new_keys and not {"-m", "--multirun"} & set(argv):
        raise UserMistake(f"resume={folder} goes on with one run, and sweep=... needs many: add -m.")
    words = [str(word) for word in OmegaConf.load(saved)]
    known = new_keys | {key_of(word) for word in words}
    again = [_from_anywhere(word, run) for word in words if key_of(word) not in new_keys]
    again += [word for word in _defaults_of_before(run) if key_of(word) not in known]
    if new_keys & {STEPS, EPOCHS}:  # it ends as is said now, and not before that as was said then
        again = [word for word in again if key_of(word) not in (STEPS, EPOCHS)]
    here = [] if "hydra.run.dir" in new_keys else [f"hydra.run.dir={quoted(str(folder))}"]
    return [*_folder_of_configs(run, argv), *argv, *again, *here]


@contextmanager
def forgotten_if_refused(argv: Sequence[str]) -> Iterator[None]:
    """Hydra notes what an attempt was asked for before it begins. One that fails before its first checkpoint
    leaves what the run was given before, or resume=<folder> alone would fail in the same way.
    """
    folders = [_folder_resumed(argv), _own_folder(argv)]
    runs = [run for run in map(RunFolder, filter(None, folders)) if run.has_checkpoint()]
    if not runs or getattr(rank_zero_only, "rank", None):
        yield
        return
    notes = {path: path.read_bytes() for run in runs for path in _notes(run)}
    before = [run.last_checkpoint().stat().st_mtime_ns for run in runs]
    try:
        yield
    except FolderTaken:  # nothing was noted, and by now the notes are those of the run that is at work
        raise
    except BaseException:
        if [run.last_checkpoint().stat().st_mtime_ns for run in runs] == before:
            for path, content in notes.items():
                path.write_bytes(content)
        raise


def _notes(run: RunFolder) -> list[Path]:
    """Hydra's, the run's own config, and how a sweep's job ended there."""
    noted = (*run.root.glob(".hydra/*"), run.config, run.root / ERROR_FILE)
    return [path for path in noted if path.is_file()]


def _folder_resumed(argv: Sequence[str]) -> Path | None:
    said = [unquoted(word.removeprefix(RESUME)) for word in argv if word.startswith(RESUME)]
    return Path(said[-1]).expanduser() if said and said[-1] not in ("", "null", ".") else None


def _from_anywhere(word: str, run: RunFolder) -> str:
    """A path that was said is taken whole: in another folder the same words name another file, or none. Of a
    chat template's file the config has the text.
    """
    key, _, said = word.partition("=")
    if key_of(word) not in (*NAMING_PATHS, CHAT_TEMPLATE) or not run.config.is_file():
        return word
    kept = OmegaConf.select(OmegaConf.load(run.config), key_of(word), throw_on_resolution_failure=False)
    if not isinstance(kept, str):
        return word
    if key_of(word) == CHAT_TEMPLATE:
        takes_its_place = is_file_name(unquoted(said)) and "${" not in kept  # which Hydra would fill in
    else:
        takes_its_place = Path(kept).is_absolute()  # a name on the hub stays one
    return f"{key}={quoted(kept)}" if takes_its_place else word


def _defaults_of_before(run: RunFolder) -> list[str]:
    """What a run began with, though nobody said so and the default is another by now: virtual tokens before
    BOS, the score by which a checkpoint was best, and steps that ended it before its epochs did.
    """
    cfg = OmegaConf.load(run.config) if run.config.is_file() else OmegaConf.create()
    words = []
    data, best = OmegaConf.select(cfg, "data"), OmegaConf.select(cfg, "callbacks.checkpoint")
    if data is not None and "before_bos" not in data and str(data.get("_target_")).startswith("ptlit.data."):
        words.append("++data.before_bos=true")
    if best is not None and best.get("monitor") and best.get("mode"):
        words += [f"callbacks.checkpoint.{key}='{best[key]}'" for key in ("monitor", "mode")]
    if (steps := OmegaConf.select(cfg, STEPS)) is not None:
        words.append(f"{STEPS}={steps}")
    return words


def _folder_of_configs(run: RunFolder, argv: Sequence[str]) -> list[str]:
    """The run's --config-dir, for experiments and prompts of one's own."""
    saved = run.root / ".hydra" / "hydra.yaml"
    if any(word.startswith(("--config-dir", "-cd")) for word in argv) or not saved.is_file():
        return []
    sources = OmegaConf.select(OmegaConf.load(saved), "hydra.runtime.config_sources") or []
    said = [Path(each.path) for each in sources if each.provider == "command-line"]
    return ["--config-dir", str(said[-1])] if said and said[-1].is_dir() else []


def _own_folder(argv: Sequence[str]) -> Path | None:
    said = [unquoted(word.partition("=")[2]) for word in argv if key_of(word) == "hydra.run.dir"]
    return Path(said[-1]).resolve() if said else None
