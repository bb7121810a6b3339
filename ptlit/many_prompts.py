"""Many prompts on one frozen LM: each row of a batch stands behind its own, of any kind and length.

The prompts are computed once. A batch is then read as if it had one prompt, however many there are.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ptlit.data import LabelWords
from ptlit.decoding import Decoding, refuse, unpadded
from ptlit.leaning import leaning
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix, PrefixOfRows
from ptlit.prompted_lm import PromptedLM
from ptlit.token_rows import last_of


class ManyPrompts(nn.Module):
    """Prompts by name, and the label words of those that name labels. It serves: nothing here is trained."""

    def __init__(
        self, prompts: Mapping[str, PromptedLM], label_words: Mapping[str, LabelWords] | None = None
    ):
        super().__init__()
        check_prompts(prompts)
        self.prompts = dict(prompts)
        self.modules_of_prompts = nn.ModuleList(prompts.values()).eval()  # dropout would make answers differ
        self.label_words = dict(label_words or {})
        every = [label for words in self.label_words.values() for label in words.names]
        self.labels = tuple(dict.fromkeys(every))  # of all prompts
        self.alone = PromptedLM(next(iter(prompts.values())).lm, None)
        self._leanings: dict[str, Tensor] = {}

    @torch.no_grad()
    def label_scores(self, names: Sequence[str], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What decides for a label, (B, labels), of each row behind the prompt that `names` gives it; -inf
        where that prompt does not know the label. Rows are right-padded texts, and are read once.
        """
        words = [self._words_of(name) for name in names]
        prefix = self._prefixes_of(names)
        attention_mask = self._behind(names, input_ids, attention_mask)
        order = (1 - attention_mask).argsort(dim=1, stable=True)  # (B, T): padding last
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        last = last_of(attention_mask)
        if all(each.longest == 1 for each in words):
            seen = torch.cat([prefix.mask, attention_mask], dim=1)  # (B, P + T)
            logits = self.alone.logits({"input_ids": input_ids}, seen, last, prefix.shared_cache())
            rest = logits.new_zeros(len(words), max(len(each.token_ids) for each in words))
        else:
            logits, read = self._read(prefix, input_ids, attention_mask, last)
            rest = self._rest(read, [each.token_ids for each in words])
        first = logits.float().log_softmax(-1)  # (B, V)

        scores = first.new_full((len(words), len(self.labels)), -torch.inf)
        for name in dict.fromkeys(names):
            rows = torch.tensor([row for row, each in enumerate(names) if each == name], device=first.device)
            known = self.label_words[name]
            heads = [ids[0] for ids in known.token_ids]
            found = first[rows][:, heads] + rest[rows, : len(heads)]  # (rows, W)
            columns = torch.tensor([self.labels.index(label) for label in known.names], device=first.device)
            scores[rows[:, None], columns] = known.of_labels(found.float()) - self._leaning(name)
        return scores

    @torch.no_grad()
    def generate(
        self, names: Sequence[str], input_ids: Tensor, attention_mask: Tensor, **generation: Any
    ) -> Tensor:
        """transformers' `generate`, each row behind the prompt that `names` gives it: the input ids
        (left-padded) followed by new tokens.
        """
        model = self.alone.lm.model
        decoding = Decoding.asked(model, generation, input_ids.shape[1])
        refuse(decoding, attention_mask)
        if decoding.is_assisted or decoding.config.use_cache is False or decoding.config.cache_implementation:
            raise UserMistake(
                "Rows with prompts of their own are written with an ordinary cache: leave out assistants, "
                "use_cache and cache_implementation."
            )
        prefix = self._prefixes_of(names)
        text, mask = unpadded(input_ids, attention_mask)
        mask = self._behind(names, text, mask)
        before, last = mask[:, :-1], mask[:, -1:]
        if before.any():  # read with its padding behind it, where nothing counts it
            order = (1 - before).argsort(dim=1, stable=True)
            ids = text[:, :-1].gather(1, order)
            _, prefix = self._read(prefix, ids, before.gather(1, order), torch.zeros_like(order).bool())
        seen = torch.cat([prefix.mask, last], dim=1)
        rows = torch.arange(len(names), device=text.device)
        ways = max(decoding.config.num_beams or 1, decoding.sequences)
        whole = nn.functional.pad(
            text, (seen.shape[1] - text.shape[1], 0)
        )  # as wide as `seen`: its last is still to be read
        written = model.generate(
            input_ids=whole,
            attention_mask=seen,
            past_key_values=prefix.of(rows.repeat_interleave(ways)).growing_cache(model),
            **decoding.options,
        )
        new = written[:, whole.shape[1] :]  # (B * sequences, M)
        return torch.cat([input_ids.repeat_interleave(decoding.sequences, dim=0), new], dim=1)

    def _behind(self, names: Sequence[str], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mask (B, T) of what goes on behind the prompts: not of the words that stand before them."""
        mask = attention_mask.clone()
        for name in dict.fromkeys(names):
            rows = torch.tensor([each == name for each in names], device=mask.device)
            front = self.prompts[name].front
            _, rest = front.behind(input_ids[rows], mask[rows])  # (rows, T - n)
            mask[rows] = nn.functional.pad(rest, (len(front.leading), 0))
        if not mask.any(1).all():
            raise UserMistake("A row has no text behind its prompt, so there is nothing to read.")
        return mask

    def _read(
        self, prefix: PrefixOfRows, input_ids: Tensor, attention_mask: Tensor, keep: Tensor
    ) -> tuple[Tensor, PrefixOfRows]:
        """Logits (N, V) where `keep` is True, and what further tokens see: the text has joined the prefix."""
        cache = prefix.whole_cache()
        seen = torch.cat([prefix.mask, attention_mask], dim=1)  # (B, P + T)
        logits = self.alone.logits({"input_ids": input_ids}, seen, keep, cache)
        return logits, PrefixOfRows.read_into(cache, seen)

    def _rest(self, read: PrefixOfRows, words: Sequence[Sequence[tuple[int, ...]]]) -> Tensor:
        """Log-probability of all but the first token of each word that may follow a row, (B, W)."""
        several = [
            (row, place, ids)
            for row, each in enumerate(words)
            for place, ids in enumerate(each)
            if len(ids) > 1
        ]
        rows, places, tokens = zip(*several, strict=True)
        device = read.mask.device
        ids = pad_sequence([torch.tensor(each, device=device) for each in tokens], batch_first=True)
        lengths = torch.tensor([len(each) for each in tokens], device=device)
        learned = torch.arange(1, ids.shape[1], device=device) < lengths[:, None]  # (N, M)
        behind = read.of(torch.tensor(rows, device=device))
        seen = torch.cat([behind.mask, learned.to(behind.mask.dtype)], dim=1)
        logits = self.alone.logits({"input_ids": ids[:, :-1]}, seen, learned, behind.shared_cache())
        said = logits.float().log_softmax(-1).gather(-1, ids[:, 1:][learned][:, None])[:, 0]
        of_words = torch.zeros_like(learned, dtype=said.dtype).masked_scatter(learned, said)  # (N, M)
        rest = said.new_zeros(len(words), max(map(len, words)))
        rest[list(rows), list(places)] = of_words.sum(1)
        return rest

    @cached_property
    def _prefixes(self) -> dict[str, Prefix]:
        found = {name: prompted_lm.prefix() for name, prompted_lm in self.prompts.items()}
        return {name: prefix for name, prefix in found.items() if prefix is not None}

    @cached_property
    def _side_by_side(self) -> PrefixOfRows:
        return PrefixOfRows.side_by_side(list(self._prefixes.values()))

    def _prefixes_of(self, names: Sequence[str]) -> PrefixOfRows:
        if unknown := [name for name in names if name not in self.prompts]:
            raise UserMistake(f"There is no prompt {unknown[0]!r}, only {', '.join(self.prompts)}.")
        known = list(self.prompts)
        rows = [known.index(name) for name in names]
        return self._side_by_side.of(torch.tensor(rows, device=self.alone.lm.device))

    def _words_of(self, name: str) -> LabelWords:
        if name not in self.label_words:
            raise UserMistake(f"The prompt {name!r} names no labels, only {', '.join(self.label_words)} do.")
        return self.label_words[name]

    def _leaning(self, name: str) -> Tensor:
        if name not in self._leanings:
            words = self.label_words[name]
            self._leanings[name] = leaning(self.prompts[name], words, self._prefixes[name])
        return self._leanings[name]


def check_prompts(prompts: Mapping[str, PromptedLM]) -> None:
    """Whether one batch can serve them all."""
    if not prompts:
        raise UserMistake("No prompt is given.")
    (first, one), *_ = prompts.items()
    for name, prompted_lm in prompts.items():
        if prompted_lm.lm is not one.lm and (prompted_lm.lm.has_lora or one.lm.has_lora):
            worn = name if prompted_lm.lm.has_lora else first
            raise UserMistake(
                f"{worn!r} has a LoRA of its own on the LM, and one batch has one LM: answer with it alone."
            )
        if prompted_lm.lm is not one.lm:
            raise UserMistake(
                f"{name!r} stands before {prompted_lm.lm.name} ({prompted_lm.lm.dtype}) and {first!r} before "
                f"{one.lm.name} ({one.lm.dtype}): one batch has one LM."
            )
        if prompted_lm.prompt is None:
            raise UserMistake(f"{name!r} has no prompt.")
        if prompted_lm.in_rows:
            raise UserMistake(
                f"{name!r} has virtual tokens inside its template, which no batch with other prompts can "
                "have: train it without {soft:...}."
            )
        if not prompted_lm.lm.shape.all_layers_attend:
            raise UserMistake(
                f"{prompted_lm.lm.name} does not keep keys and values in every layer, so its rows cannot "
                "have prompts of their own: answer with one at a time."
            )
