"""What transformers' `generate` is told where a prompt stands before the text.

A prefix is a cache whose words `generate` has not seen. What depends on that is settled here: the length of
answers, the kind of cache, where padding stands; and what cannot be had is refused.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel

from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix

USUAL_NEW_TOKENS = 20  # of transformers, where nothing is said
CACHES = ("dynamic", "static")


@dataclass(frozen=True)
class Decoding:
    """`config` is all that counts, from the options, the config given and the LM's own, in this order;
    `options` is what `generate` is called with. Only the latter knows an explicit None from nothing said.
    """

    config: GenerationConfig
    options: dict[str, Any]

    @classmethod
    def asked(cls, model: PreTrainedModel, options: Mapping[str, Any], length: int) -> "Decoding":
        """`length` is that of the text. New tokens alone are counted from here on."""
        said = dict(options)
        given = said.pop("generation_config", None)
        config = copy.deepcopy(given) if given is not None else GenerationConfig()
        own = model.generation_config.to_dict() if model.generation_config is not None else {}
        config.update(**own, defaults_only=True, allow_custom_entries=True)
        config.update(**said)
        if config.cache_implementation == "hybrid":  # said by older LMs, and passed over by transformers
            config.cache_implementation = None
        decoding = cls(config, dict(options))
        if config.max_new_tokens is not None:
            return decoding
        new = config.max_length - length if config.max_length is not None else USUAL_NEW_TOKENS
        if new < 1:
            raise UserMistake(
                f"max_length={config.max_length} leaves no room behind {length} tokens of text: raise it."
            )
        least = config.min_new_tokens or max((config.min_length or 0) - length, 0)
        return decoding.but(max_new_tokens=new, max_length=None, min_new_tokens=least or None, min_length=0)

    def but(self, **changes: Any) -> "Decoding":
        config = copy.deepcopy(self.config)
        config.update(**changes)
        given = self.options.get("generation_config")
        if given is None:
            return Decoding(config, self.options | changes)
        given = copy.deepcopy(given)  # transformers wants all of it in one place
        given.update(**changes)
        rest = {name: value for name, value in self.options.items() if name not in changes}
        return Decoding(config, rest | {"generation_config": given})

    @property
    def new_tokens(self) -> int:
        assert self.config.max_new_tokens is not None
        return self.config.max_new_tokens

    @property
    def sequences(self) -> int:
        """Answers to each row."""
        return self.config.num_return_sequences or 1

    @property
    def is_assisted(self) -> bool:
        """Whether tokens are guessed first and then judged by the LM, several at once."""
        assistant = self.options.get("assistant_model")
        return assistant is not None or self.config.prompt_lookup_num_tokens is not None

    @property
    def pad_id(self) -> int:
        """What transformers fills ended rows with."""
        end = self.config.eos_token_id
        first = end[0] if isinstance(end, list) else end
        return self.config.pad_token_id if self.config.pad_token_id is not None else first or 0


def refuse(decoding: Decoding, mask: Tensor) -> None:
    """What comes to nothing, or to an answer that nobody asked for."""
    config, rows = decoding.config, len(mask)
    if not mask[:, -1].all():
        raise UserMistake("generate takes rows padded on the left: set tokenizer.padding_side='left'.")
    if config.return_dict_in_generate:
        raise UserMistake("generate gives token ids alone: leave return_dict_in_generate out.")
    if config.cache_implementation == "static" and config.use_cache is False:
        raise UserMistake("cache_implementation=static and use_cache=false exclude each other: give one.")
    if not decoding.is_assisted:
        return
    if rows > 1:
        raise UserMistake(f"Assisted generation reads one row at a time, not {rows}: call it for each.")
    if config.use_cache is False or config.cache_implementation == "static":
        what = "use_cache=false" if config.use_cache is False else "cache_implementation=static"
        raise UserMistake(
            f"Assisted generation takes back tokens from its cache, so {what} must be left out."
        )


def cache_behind(prefix: Prefix, model: PreTrainedModel, decoding: Decoding, ids: Tensor) -> Cache:
    """What `generate` goes on from; `cache_implementation` is for caches that it makes itself."""
    config = decoding.config
    if config.cache_implementation not in (None, *CACHES):
        raise UserMistake(
            f"cache_implementation={config.cache_implementation} cannot begin with a prompt: leave it out or "
            f"give one of {', '.join(CACHES)}."
        )
    if config.use_cache is False:
        return prefix.shared_cache()  # it remembers nothing: all words are read anew for each token
    rows = len(ids) * max(config.num_beams or 1, decoding.sequences)
    if config.cache_implementation == "static":
        return prefix.static_cache(model, rows, ids.shape[1] + decoding.new_tokens)
    return prefix.growing_cache(model, rows)


def unpadded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns that are padding in every row."""
    first = int((~mask.bool().any(0)).long().cumprod(0).sum())
    return ids[:, first:], mask[:, first:]


def padding_first(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Left padding behind virtual tokens, (B, P + T, H), moved to where every LM passes over it."""
    order = mask.argsort(dim=1, stable=True)  # (B, P + T)
    return embeddings.gather(1, order[..., None].expand_as(embeddings)), mask.gather(1, order)


def side_by_side(parts: list[tuple[Tensor, Tensor]], pad: int) -> Tensor:
    """Rows of several lengths as one batch: pairs of the rows' places and their new tokens (N, M)."""
    longest = max(new.shape[1] for _, new in parts)
    whole = parts[0][1].new_full((sum(len(new) for _, new in parts), longest), pad)
    for places, new in parts:
        whole[places] = nn.functional.pad(new, (0, longest - new.shape[1]), value=pad)
    return whole
