"""The start that is nearest to no prompt at all, found by trying.

None does exactly nothing. Virtual tokens move the words to later positions, and attention that goes to them
is taken from the words, whatever they hold: even keys and values of zero have a share of it, and many LMs
lean on the first token that they read, which is now another. So a few that say little are tried on texts of
the task, and that one is taken behind which the LM's next word is most nearly what it would have said alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake

FAINT = 0.1  # of an embedding; not 0, where gradients through an LM's norm are beyond all bounds


def silent_embeddings(lm: FrozenLM, count: int, texts: Sequence[Sequence[int]], leading: int = 0) -> Tensor:
    """(P, H): of those tried, that with the least divergence of the next word, summed over the texts.

    They are tried behind so many `leading` tokens of each text.
    """
    if not texts:
        raise UserMistake("prompt.init.from=zero needs texts to try it on: give data, or another start.")
    rows = [torch.tensor([list(text)], device=lm.device) for text in texts]  # (1, T)
    alone = [lm.model(input_ids=ids).logits[0, -1].float().log_softmax(-1) for ids in rows]  # (V,)

    def divergence(tried: Tensor) -> float:
        said = [next_word(lm, tried, ids, leading) for ids in rows]
        pairs = zip(said, alone, strict=True)
        return sum(F.kl_div(now, before, reduction="sum", log_target=True).item() for now, before in pairs)

    return min(little(lm, count, first=texts[0][0]), key=divergence)


def little(lm: FrozenLM, count: int, first: int) -> list[Tensor]:
    """The token that texts begin with, or a special one: again and again, or once and then faintly."""
    special = [lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id]
    tokens = dict.fromkeys(token for token in (first, *special) if token is not None)
    strength = torch.full((count, 1), FAINT, dtype=lm.dtype, device=lm.device)
    strength[0] = 1.0
    words = [lm.embed(torch.full((count,), token, device=lm.device)) for token in tokens]  # (P, H)
    return [each for word in words for each in (word * strength, word)]


def next_word(lm: FrozenLM, virtual: Tensor, ids: Tensor, leading: int) -> Tensor:
    """Log-probabilities (V,) after a text (1, T), with virtual tokens (P, H) behind its `leading` ones."""
    words = lm.embed(ids)
    embedded = torch.cat([words[:, :leading], virtual[None], words[:, leading:]], dim=1)  # (1, P + T, H)
    return lm.model(inputs_embeds=embedded).logits[0, -1].float().log_softmax(-1)
