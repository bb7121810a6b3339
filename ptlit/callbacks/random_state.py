"""The state of the random generators in every checkpoint, so that a resumed run draws the same dropout."""

from typing import Any

import lightning as L
import torch


class RandomState(L.Callback):
    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        states: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state_all()
        return states

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Not earlier: what Lightning sets up between loading and the first batch draws numbers too."""
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu"].cpu())
        if "cuda" in self._restored:
            torch.cuda.set_rng_state_all([state.cpu() for state in self._restored["cuda"]])
        self._restored = None
