"""What transformers makes of rows: its collator pads them on the right, and the model gives its loss."""

from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq

from ptlit.benchmark.engines import Rows
from ptlit.lm import FrozenLM


class PaddedLoss:
    """Padded to the longest row of the batch, or to a fixed length."""

    def __init__(self, lm: FrozenLM, model: nn.Module, length: int | None = None):
        self.model, self.device = model, lm.device
        tokenizer = lm.tokenizer
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        padding = True if length is None else "max_length"
        self.collate = DataCollatorForSeq2Seq(tokenizer, padding=padding, max_length=length)

    def batch(self, rows: Rows) -> dict[str, Tensor]:
        return dict(self.collate([{key: row[key] for key in ("input_ids", "labels")} for row in rows]))

    def __call__(self, rows: Rows) -> Tensor:
        return self.model(**{key: value.to(self.device) for key, value in self.batch(rows).items()}).loss
