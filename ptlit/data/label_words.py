"""The words that stand for the labels, as the tokens that the LM is to say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ptlit.data.example import end_token, token_ids
from ptlit.mistake import UserMistake


@dataclass(frozen=True)
class LabelWords:
    """A label may have several words: it is as likely as they are together, and the first is learned."""

    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]  # of each label
    token_ids: tuple[tuple[int, ...], ...]  # what follows the text, one tuple for each word of each label
    ends_with_eos: bool  # the tokens then include it
    content_free: tuple[tuple[int, ...], ...] = ()  # texts that say nothing, to be answered evenly

    @property
    def longest(self) -> int:
        return max(map(len, self.token_ids))

    @property
    def firsts(self) -> list[tuple[int, ...]]:
        """The tokens that are learned, one tuple for each label."""
        starts = [sum(map(len, self.words[:label])) for label in range(len(self.words))]
        return [self.token_ids[start] for start in starts]

    def of_labels(self, scores: Tensor) -> Tensor:
        """Log-probabilities of all words, (B, W), to those of the labels, (B, C)."""
        parts = scores.split([len(words) for words in self.words], dim=1)
        return torch.cat([part.logsumexp(1, keepdim=True) for part in parts], dim=1)

    @classmethod
    def make(
        cls,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        words: Mapping[str, str | Sequence[str]] | None = None,
        lead: str = "",
        content_free: Sequence[Sequence[int]] = (),
    ) -> "LabelWords":
        """`lead` is white space that the template leaves to its target; a word is `" " + name` by default."""
        if words is None:
            words = {name: name if lead else " " + name for name in names}
        of_each = tuple(tuple(word_list(words[name])) for name in names)
        if silent := [name for name, found in zip(names, of_each, strict=True) if not all(found or [""])]:
            raise UserMistake(f"The label {silent[0]!r} has no word: give it one in data.label_words.")
        owners = [name for name, found in zip(names, of_each, strict=True) for _ in found]
        ids = token_ids([lead + word for found in of_each for word in found], tokenizer)
        for (name, tokens), (other, others) in combinations(zip(owners, ids, strict=True), 2):
            if tokens == others and name == other:
                raise UserMistake(f"Two words of the label {name!r} in data.label_words are the same.")
            if tokens == others:
                raise UserMistake(
                    f"The labels {name!r} and {other!r} are the same tokens to this LM: give them different"
                    " words in data.label_words."
                )
        if silent := [name for name, tokens in zip(owners, ids, strict=True) if not tokens]:
            raise UserMistake(f"The label {silent[0]!r} has no word: give it one in data.label_words.")
        # A word that begins another would always score higher; a common end makes them comparable.
        ends_with_eos = any(longer[: len(short)] == short for short, longer in permutations(ids, 2))
        if ends_with_eos:
            ids = [[*tokens, end_token(tokenizer)] for tokens in ids]
        return cls(
            tuple(names), of_each, tuple(map(tuple, ids)), ends_with_eos, tuple(map(tuple, content_free))
        )


def word_list(words: str | Sequence[str]) -> list[str]:
    return [words] if isinstance(words, str) else list(words)
