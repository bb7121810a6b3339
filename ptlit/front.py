"""What stands before every row of text: the virtual tokens, and what the tokenizer puts before a text.

Rows are encoded as the LM would read them alone, so they begin with BOS, where the tokenizer has one. Virtual
tokens stand between it and the text. Both are the same for all rows and therefore computed once; the rows go
on without theirs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake


@dataclass(frozen=True)
class Front:
    """n leading words of the LM, which rows have too, then P virtual tokens."""

    lm: FrozenLM
    leading: tuple[int, ...] = ()
    virtual: int = 0

    @property
    def length(self) -> int:
        return len(self.leading) + self.virtual

    def words(self) -> Tensor:
        """The embeddings of the leading words, (n, H)."""
        return self.lm.embed(torch.tensor(self.leading, dtype=torch.long, device=self.lm.device))

    def embeddings(self, virtual: Tensor) -> Tensor:
        """With those of the virtual tokens, (P, H) to (n + P, H)."""
        return torch.cat([self.words().to(virtual.dtype), virtual]) if self.leading else virtual

    def behind(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, T) without their leading words, (B, T - n), padded on the side where they were."""
        if not self.leading:
            return input_ids, attention_mask
        text = attention_mask.cumsum(1) > len(self.leading)  # (B, T), and padding behind it
        found = input_ids[attention_mask.bool() & ~text]  # (B * n,)
        wanted = torch.tensor(self.leading, device=found.device).repeat(len(input_ids))
        if not torch.equal(found, wanted):
            raise UserMistake(
                f"Virtual tokens stand behind the tokens {list(self.leading)} here, and a row does not begin "
                "with these: give rows that do, or set data.before_bos=true."
            )
        return input_ids[:, len(self.leading) :], (attention_mask * text)[:, len(self.leading) :]

    def kept_behind(self, keep: Tensor) -> Tensor:
        """(B, T) to (B, T - n), as the rows."""
        return keep[:, len(self.leading) :]

    def kept(self, keep: Tensor) -> Tensor:
        """(B, T) to (B, P + T): what the last leading word would have said, the last virtual token says."""
        place = max(len(self.leading) - 1, 0)
        virtual = keep.new_zeros(len(keep), self.virtual)
        return torch.cat([keep[:, :place], virtual, keep[:, place:]], dim=1)

    def is_asked(self, keep: Tensor) -> bool:
        """Whether anything is to be said before a row has gone on."""
        return bool(self.leading) and bool(keep[:, : len(self.leading)].any())

    def seen(self, attention_mask: Tensor) -> Tensor:
        """(B, T) of what goes on behind, to (B, n + P + T)."""
        return torch.nn.functional.pad(attention_mask, (self.length, 0), value=1)
