"""Encoded rows to a batch, padded on the right; the attention mask alone says what is padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from ptlit.data.example import NOT_LEARNED, EncodedRow


class Batch(TypedDict):
    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T)
    labels: Tensor  # (B, T), -100 where a token is only read
    label: Tensor  # (B,) index of the class
    row: Tensor  # (B,) index into the split


class IndexedRow(EncodedRow):
    row: int


@dataclass(frozen=True)
class Collate:
    pad_token_id: int

    def __call__(self, rows: Sequence[IndexedRow]) -> Batch:
        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), longest)
        input_ids = torch.full(shape, self.pad_token_id)
        labels = torch.full(shape, NOT_LEARNED)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            input_ids[i, :length] = torch.tensor(row["input_ids"])
            labels[i, :length] = torch.tensor(row["labels"])
            attention_mask[i, :length] = 1
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            label=torch.tensor([row["label"] for row in rows]),
            row=torch.tensor([row["row"] for row in rows]),
        )
