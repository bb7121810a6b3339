"""A run has its folder to itself, and a sweep its own, before Hydra notes anything there."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ptlit.own_folder import hold


class OneAtATime(Callback):
    """The processes of one run share its folder, and a command that makes no run is in its user's."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.output_subdir is not None:
            take(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        take(config, "hydra.sweep.dir")


def take(config: DictConfig, key: str) -> None:
    if getattr(rank_zero_only, "rank", None):
        return
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(config)  # which Hydra itself does later: the folder's name refers to it
    try:
        hold(Path(OmegaConf.select(config, key)), key)
    finally:
        hydra.cfg = before
