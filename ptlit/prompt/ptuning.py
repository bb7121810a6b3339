"""P-tuning: a table of embeddings read through a small encoder that ties the virtual tokens together.

Liu, Zheng, Du et al. (2021), "GPT Understands, Too". Modules and counts are those of PEFT's PromptEncoder.
"""

import torch
from torch import Tensor, nn

from ptlit.lm import LMShape
from ptlit.mistake import UserMistake
from ptlit.prompt.base import EmbeddingPrompt, Offset, checked_rate, checked_size


class PtuningMlp(EmbeddingPrompt):
    """Every virtual token goes through the same multilayer perceptron."""

    peft_type = "P_TUNING"

    def __init__(
        self,
        shape: LMShape,
        num_virtual_tokens: int = 20,
        hidden_size: int = 128,
        num_layers: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__(num_virtual_tokens)
        width, hidden = shape.hidden_size, checked_size("hidden_size", hidden_size)
        self.embedding = nn.Embedding(num_virtual_tokens, width)
        layers: list[nn.Module] = []
        for index in range(checked_size("num_layers", num_layers)):
            layers += [nn.Linear(width if index == 0 else hidden, hidden), nn.ReLU()]
            if checked_rate("dropout", dropout) > 0:
                layers.append(nn.Dropout(dropout))
        self.mlp_head = nn.Sequential(*layers, nn.Linear(hidden, width))
        self.offset = Offset(num_virtual_tokens, width)
        self._options = {
            "encoder_hidden_size": hidden,
            "encoder_num_layers": num_layers,
            "encoder_dropout": dropout,
            "encoder_reparameterization_type": "MLP",
        }

    def forward(self) -> Tensor:
        return self.offset(self.mlp_head(self.embedding.weight))  # (P, H)

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        self.offset.bring(self, target)

    def peft_options(self) -> dict[str, object]:
        return self._options


class PtuningLstm(EmbeddingPrompt):
    """A bidirectional LSTM over the virtual tokens, then a perceptron."""

    peft_type = "P_TUNING"

    def __init__(
        self,
        shape: LMShape,
        num_virtual_tokens: int = 20,
        hidden_size: int = 128,
        num_layers: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__(num_virtual_tokens)
        width, hidden = shape.hidden_size, checked_size("hidden_size", hidden_size)
        if checked_rate("dropout", dropout) > 0 and num_layers == 1:
            raise UserMistake(
                f"prompt.dropout={dropout} acts between the layers of the LSTM and prompt.num_layers=1 has "
                "no between: set prompt.dropout=0 or prompt.num_layers=2."
            )
        self.embedding = nn.Embedding(num_virtual_tokens, width)
        self.lstm_head = nn.LSTM(
            width,
            hidden,
            num_layers=checked_size("num_layers", num_layers),
            dropout=dropout,
            bidirectional=True,
            batch_first=True,
        )
        self.mlp_head = nn.Sequential(
            nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width)
        )
        self.offset = Offset(num_virtual_tokens, width)
        self._options = {
            "encoder_hidden_size": hidden,
            "encoder_num_layers": num_layers,
            "encoder_dropout": dropout,
            "encoder_reparameterization_type": "LSTM",
        }

    def forward(self) -> Tensor:
        read, _ = self.lstm_head(self.embedding.weight)  # (P, 2 * E)
        return self.offset(self.mlp_head(read))  # (P, H)

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        self.offset.bring(self, target)

    def peft_options(self) -> dict[str, object]:
        return self._options
