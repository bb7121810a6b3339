"""Whether an earlier run learned from rows that this one is judged by: the seed says which are set aside."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ptlit.data import TextData
from ptlit.run_folder import RunFolder


def rows_seen(run: Path, data: TextData[Any]) -> list[str]:
    """What to say of a run folder, or an adapter in one, that divided the same file in another way."""
    here, config = data.setting_aside, RunFolder(run).config
    config = config if config.is_file() else RunFolder(run.parent).config
    if not data.sets_aside or not config.is_file():
        return []
    cfg = OmegaConf.load(config)
    divided = {"seed": OmegaConf.select(cfg, "seed")}
    divided |= {f"data.{name}": OmegaConf.select(cfg, f"data.{name}") for name in ("folds", "fold")}
    mine = {"seed": here.seed, "data.folds": here.folds, "data.fold": here.fold}
    files = (Path(path).expanduser().resolve() for path in (OmegaConf.select(cfg, "data.path"), here.path))
    if len(set(files)) > 1 or divided == mine:
        return []
    words = " ".join(f"{key}={'null' if value is None else value}" for key, value in divided.items())
    return [
        f"It learned from {here.path} with {words}, so rows that are set aside here may be among those it "
        "has seen: give the same, or data.val_path and data.test_path."
    ]
