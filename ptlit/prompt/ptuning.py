"""P-tuning: a table of embeddings read through a small encoder that ties the virtual tokens together.

Liu, Zheng, Du et al. (2021), "GPT Understands, Too". Modules and counts are those of PEFT's PromptEncoder.
An encoder moves all virtual tokens together. Past it, times `residual`, each learns by itself as well, the
skip connection of Razdaibiedina, Mao et al. (2023), "Residual Prompt Tuning"; 0 is the original form.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ptlit.lm import LMShape
from ptlit.mistake import UserMistake
from ptlit.prompt.base import EmbeddingPrompt, Offset, Scale, checked_rate, checked_size


class Ptuning(EmbeddingPrompt):
    """Interface: what both encoders share."""

    peft_type = "P_TUNING"
    reparameterization: str  # PEFT's word for the encoder

    def __init__(
        self,
        shape: LMShape,
        num_virtual_tokens: int = 20,
        hidden_size: int = 128,
        num_layers: int = 2,
        dropout: float = 0.0,
        residual: float = 0.0,
        lm_scale: bool = False,
    ):
        super().__init__(num_virtual_tokens)
        self.embedding = nn.Embedding(num_virtual_tokens, shape.hidden_size)
        self.build_encoder(
            shape.hidden_size,
            checked_size("hidden_size", hidden_size),
            checked_size("num_layers", num_layers),
            checked_rate("dropout", dropout),
        )
        self.scale = Scale.of_embeddings(shape, lm_scale)
        self.offset = Offset(num_virtual_tokens, shape.hidden_size)
        self.residual = checked_residual(residual)
        self.moved = Moved(self.embedding.weight)
        self._options = {
            "encoder_hidden_size": hidden_size,
            "encoder_num_layers": num_layers,
            "encoder_dropout": dropout,
            "encoder_reparameterization_type": self.reparameterization,
        }

    @abstractmethod
    def build_encoder(self, width: int, hidden: int, layers: int, dropout: float) -> None: ...

    @abstractmethod
    def encoded(self) -> Tensor:
        """What the encoder makes of the table: (P, H)."""

    def forward(self) -> Tensor:
        """It starts as the encoder alone would: what passes is how far the table has moved."""
        moved = self.moved(self.embedding.weight)
        return self.offset(self.scale(torch.add(self.encoded(), moved, alpha=self.residual)))  # (P, H)

    def completed(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As earlier versions saved it, it begins to pass where it was."""
        return {
            **({"moved.origin": saved["embedding.weight"]} if "embedding.weight" in saved else {}),
            **super().completed(saved),
        }

    def _load_from_state_dict(self, saved: dict[str, Any], place: str, *how: Any) -> None:
        if not self.residual:  # then nothing hangs on the origin
            own = {name.removeprefix(place): each for name, each in saved.items() if name.startswith(place)}
            saved.update({place + name: each for name, each in self.completed(own).items()})
        super()._load_from_state_dict(saved, place, *how)

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        self.offset.bring(self, target)

    def peft_options(self) -> dict[str, object]:
        return self._options


class PtuningMlp(Ptuning):
    """Every virtual token goes through the same multilayer perceptron."""

    reparameterization = "MLP"

    def build_encoder(self, width: int, hidden: int, layers: int, dropout: float) -> None:
        steps: list[nn.Module] = []
        for index in range(layers):
            steps += [nn.Linear(width if index == 0 else hidden, hidden), nn.ReLU()]
            if dropout > 0:
                steps.append(nn.Dropout(dropout))
        self.mlp_head = nn.Sequential(*steps, nn.Linear(hidden, width))

    def encoded(self) -> Tensor:
        return self.mlp_head(self.embedding.weight)  # type: ignore[no-any-return]


class PtuningLstm(Ptuning):
    """A bidirectional LSTM over the virtual tokens, then a perceptron."""

    reparameterization = "LSTM"

    def build_encoder(self, width: int, hidden: int, layers: int, dropout: float) -> None:
        if dropout > 0 and layers == 1:
            raise UserMistake(
                f"prompt.dropout={dropout} acts between the layers of the LSTM and prompt.num_layers=1 has "
                "no between: set prompt.dropout=0 or prompt.num_layers=2."
            )
        self.lstm_head = nn.LSTM(
            width, hidden, num_layers=layers, dropout=dropout, bidirectional=True, batch_first=True
        )
        self.mlp_head = nn.Sequential(
            nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width)
        )

    def encoded(self) -> Tensor:
        table = self.embedding.weight
        with torch.autocast(table.device.type, enabled=False):  # not every CPU has it in bfloat16
            read, _ = self.lstm_head(table)  # (P, 2 * E)
        return self.mlp_head(read)  # type: ignore[no-any-return]


class Moved(nn.Module):
    """How far a table has moved from where it started."""

    origin: Tensor

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("origin", table.detach().clone())

    def forward(self, table: Tensor) -> Tensor:
        return table - self.origin


def checked_residual(value: float) -> float:
    if value < 0:
        raise UserMistake(f"prompt.residual={value} must be 0, the encoder alone, or more.")
    return value
