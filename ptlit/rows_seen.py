"""Whether an earlier run learned from rows that this one is judged by: the seed says which are set aside."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ptlit.data import TextData
from ptlit.run_folder import RunFolder


def rows_seen(run: Path, data: TextData[Any]) -> list[str]:
    """What to say of a run folder, or an adapter in one, that divided the same file in another way."""
    config = RunFolder(run).config
    cfg = said_in(config if config.is_file() else RunFolder(run.parent).config)
    here, there = data.setting_aside, cfg.get("data.path")
    if not data.sets_aside or not isinstance(there, str):
        return []
    divided = {key: cfg.get(key) for key in ("seed", "data.folds", "data.fold")}
    mine = {"seed": here.seed, "data.folds": here.folds, "data.fold": here.fold}
    files = {Path(path).expanduser().resolve() for path in (there, here.path)}
    if len(files) > 1 or divided == mine:
        return []
    words = " ".join(f"{key}={'null' if value is None else value}" for key, value in divided.items())
    return [
        f"It learned from {here.path} with {words}, so rows that are set aside here may be among those it "
        "has seen: give the same, or data.val_path and data.test_path."
    ]


def said_in(config: Path) -> dict[str, Any]:
    """What it says of the rows; nothing where it is another program's, which may lie beside an adapter."""
    try:
        cfg = OmegaConf.load(config)
        keys = ("seed", "data.path", "data.folds", "data.fold") if isinstance(cfg, DictConfig) else ()
        return {key: OmegaConf.select(cfg, key) for key in keys}
    except (YAMLError, OmegaConfBaseException, OSError, ValueError):
        return {}
