"""best.ckpt: what is tested and exported, wherever the run folder is by now."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """One file: of the validation where `monitor` was best, or of the end where nothing was validated."""

    def __init__(self, dirpath: str, monitor: str, mode: Literal["min", "max"]):
        super().__init__(
            dirpath=dirpath, filename="best", monitor=monitor, mode=mode, enable_version_counter=False
        )

    @property
    def state_key(self) -> str:
        """Lightning's own callback's, as in the checkpoints of earlier runs."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning forgets what was best where the folder has another name than then."""
        here, before = Path(str(self.dirpath)), state_dict.get("dirpath")
        best = here / "best.ckpt"
        if before is not None and Path(before) != here and state_dict["best_model_path"] and best.is_file():
            kept = {str(best): score for score in state_dict["best_k_models"].values()}
            moved = {"best_model_path": str(best), "kth_best_model_path": str(best), "best_k_models": kept}
            state_dict = state_dict | moved | {"dirpath": self.dirpath, "last_model_path": ""}
        super().load_state_dict(state_dict)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_end(trainer, module)
        if not self.best_model_path and not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(Path(str(self.dirpath)) / "best.ckpt")
