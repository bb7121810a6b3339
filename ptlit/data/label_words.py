"""The words that stand for the labels, as the tokens that the LM is to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from transformers import PreTrainedTokenizerBase

from ptlit.data.example import end_token, token_ids
from ptlit.mistake import UserMistake


@dataclass(frozen=True)
class LabelWords:
    names: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]  # what follows the text, one tuple for each name
    words: tuple[str, ...]
    ends_with_eos: bool  # the tokens then include it

    @property
    def longest(self) -> int:
        return max(map(len, self.token_ids))

    @classmethod
    def make(
        cls,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        words: Sequence[str] | None = None,
        lead: str = "",
    ) -> "LabelWords":
        """`lead` is white space that the template leaves to its target; a word is `" " + name` by default."""
        if words is None:
            words = [name if lead else " " + name for name in names]
        ids = token_ids([lead + word for word in words], tokenizer)
        for (name, tokens), (other, others) in combinations(zip(names, ids, strict=True), 2):
            if tokens == others:
                raise UserMistake(
                    f"The labels {name!r} and {other!r} are the same tokens to this LM: give them different"
                    " words in data.label_words."
                )
        if silent := [name for name, tokens in zip(names, ids, strict=True) if not tokens]:
            raise UserMistake(f"The label {silent[0]!r} has no word: give it one in data.label_words.")
        # A word that begins another would always score higher; a common end makes them comparable.
        ends_with_eos = any(longer[: len(short)] == short for short, longer in permutations(ids, 2))
        if ends_with_eos:
            ids = [[*tokens, end_token(tokenizer)] for tokens in ids]
        return cls(tuple(names), tuple(map(tuple, ids)), tuple(words), ends_with_eos)
