"""A soft prompt in front of a frozen LM: forward, label scores, generation. It knows nothing of training.

Two routes lead to the same numbers. The prefix route computes the virtual tokens once, whatever the batch;
the concatenating route copies them into every row, as other programs do. It serves LMs that keep no keys and
values, and it is the reference that tests hold the first against.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ptlit.decoding import Decoding, cache_behind, padding_first, refuse, side_by_side, unpadded
from ptlit.front import Front
from ptlit.head import head_sees, head_sees_only
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.pack import Pack
from ptlit.prefix import Prefix, window
from ptlit.prompt import EmbeddingPrompt, SoftPrompt
from ptlit.prompt.base import check_slots
from ptlit.reading import LaidOut, layers_as_asked, read
from ptlit.token_rows import common_lead, last_of, without_places


class PromptedLM(nn.Module):
    """Rows are right-padded (B, T); positions count the virtual tokens and the real tokens, never the
    padding.
    """

    def __init__(self, lm: FrozenLM, prompt: SoftPrompt | None, slots: int = 0, leading: Sequence[int] = ()):
        """Where the rows have `slots`, virtual tokens stand in them (ids below 0), not before every row.

        Without slots those of the input kind stand behind the `leading` tokens, with which every row begins.
        Keys and values have no such place.
        """
        super().__init__()
        self.lm = lm
        self.prompt = prompt
        self.in_rows = slots > 0 and prompt is not None
        self.num_virtual_tokens = prompt.num_virtual_tokens if prompt is not None else 0
        placed = isinstance(prompt, EmbeddingPrompt) and not self.in_rows
        self.front = Front(
            lm, tuple(leading) if placed else (), 0 if self.in_rows else self.num_virtual_tokens
        )
        longest = lm.shape.max_positions
        if longest is not None and self.num_virtual_tokens >= longest:
            raise UserMistake(
                f"prompt.num_virtual_tokens={self.num_virtual_tokens} leaves no room for text: "
                f"this LM reads {longest} tokens at most."
            )
        if prompt is not None:
            check_slots(slots, type(prompt), prompt.num_virtual_tokens)
        self._copies = isinstance(prompt, EmbeddingPrompt) and not lm.shape.all_layers_attend
        self._takes_positions = "position_ids" in inspect.signature(lm.model.forward).parameters

    def with_prompt(self, prompt: SoftPrompt) -> "PromptedLM":
        """Another prompt in the place of this one."""
        slots = prompt.num_virtual_tokens if self.in_rows else 0
        return PromptedLM(self.lm, prompt, slots, self.front.leading)

    def prefix(self) -> Prefix | None:
        """What the prompt is to this LM: computed once, it serves many batches. None where there is none."""
        if self.prompt is None or self.in_rows or self._copies:
            return None
        learned = self.prompt().to(self.lm.dtype)
        if isinstance(self.prompt, EmbeddingPrompt):
            return Prefix.from_embeddings(self.front.embeddings(learned), self.lm.model)
        return Prefix.from_key_values(learned)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor, prefix: Prefix | None = None
    ) -> Tensor:
        """Logits (N, V) at the positions where `keep` (B, T) is True, in row order.

        `prefix` saves computing it again; without one it is computed here, with gradients.
        """
        if self.prompt is None:
            input_ids, attention_mask, keep = without_places(input_ids, attention_mask, keep)
        if self.is_laid_out(keep):
            return read(self.lm, [self.laid_out(input_ids, attention_mask, keep, prefix)])[0]
        if self._copies or self.front.is_asked(keep):
            return self.forward_concatenated(input_ids, attention_mask, keep)
        rows = self.front.behind(input_ids, attention_mask)
        return self._padded_logits(*rows, self.front.kept_behind(keep), prefix)

    def _padded_logits(
        self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor, prefix: Prefix | None
    ) -> Tensor:
        lead = self._lead(input_ids, attention_mask, keep)
        prefix = prefix if prefix is not None else self.prefix()
        tokens = self.tokens(input_ids)
        if lead:
            words = (
                self.lm.embed(input_ids[0, :lead])
                if "input_ids" in tokens
                else tokens["inputs_embeds"][0, :lead]
            )
            prefix = Prefix.from_embeddings(words, self.lm.model, prefix)
            tokens = {name: each[:, lead:] for name, each in tokens.items()}
        cache = prefix.shared_cache() if prefix is not None else None
        with layers_as_asked(self.lm):
            return self.logits(tokens, attention_mask, keep[:, lead:], cache)

    def forward_concatenated(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> Tensor:
        """The same by the slow route: the virtual tokens are copied into every row."""
        if isinstance(self.prompt, EmbeddingPrompt):
            input_ids, attention_mask = self.front.behind(input_ids, attention_mask)
            embeds = self.embedded(input_ids)
            mask = self.front.seen(attention_mask)
            with head_sees_only(self.lm.model, self.front.kept(keep)):
                return self.lm.model(
                    inputs_embeds=embeds, attention_mask=mask, use_cache=False, **self._positions(mask, 0)
                ).logits[0]
        prefix = self.prefix()
        cache = prefix.growing_cache(self.lm.model, len(input_ids)) if prefix is not None else None
        return self.logits({"input_ids": input_ids}, attention_mask, keep, cache)

    def label_scores(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        label_ids: tuple[tuple[int, ...], ...],
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Log-probability of each label's tokens after the text, (B, C); the text is read once.

        `input_ids` hold the text alone. Labels of several tokens are scored on top of the cache the text
        left.
        """
        if self.prompt is None:
            input_ids, attention_mask, _ = without_places(input_ids, attention_mask)
        ids, mask = self.front.behind(input_ids, attention_mask)
        lengths = mask.sum(1)
        if self._copies or not lengths.all():  # nothing is read behind the prompt, whose own end answers
            return self._scores_read_in_full(input_ids, attention_mask, label_ids)
        prefix = prefix if prefix is not None else self.prefix()
        if max(map(len, label_ids)) == 1:
            logits = self(input_ids, attention_mask, last_of(attention_mask), prefix)  # (B, V)
            return scores_of_one_token(logits, label_ids)
        scores = torch.zeros(len(ids), len(label_ids), dtype=torch.float32, device=ids.device)
        for (
            length
        ) in lengths.unique().tolist():  # no padding between text and label: sliding windows count it
            rows = lengths == length
            scores[rows] = self._scores_of_several_tokens(ids[rows, :length], label_ids, prefix)
        return scores

    def _scores_of_several_tokens(
        self, input_ids: Tensor, label_ids: tuple[tuple[int, ...], ...], prefix: Prefix | None
    ) -> Tensor:
        """Read the text, then go through every label's tokens on top of the cache it left: (B, C)."""
        rows, classes = len(input_ids), len(label_ids)
        cache = (
            prefix.growing_cache(self.lm.model, rows) if prefix is not None else Prefix.nothing(self.lm.model)
        )
        read = torch.ones_like(input_ids)
        keep = torch.zeros_like(input_ids, dtype=torch.bool)
        keep[:, -1] = True
        first = self.logits(self.tokens(input_ids), read, keep, cache).float().log_softmax(-1)  # (B, V)

        longest = max(map(len, label_ids)) - 1
        follow = [list(ids[:-1]) + [0] * (longest - len(ids) + 1) for ids in label_ids]
        wanted = [list(ids[1:]) + [-100] * (longest - len(ids) + 1) for ids in label_ids]
        follow_ids = torch.tensor(follow, device=input_ids.device).repeat(rows, 1)  # (B * C, M)
        wanted_ids = torch.tensor(wanted, device=input_ids.device).repeat(rows, 1)  # (B * C, M)
        learned = wanted_ids != -100
        cache.batch_repeat_interleave(classes)
        mask = torch.cat(
            [read.repeat_interleave(classes, 0), learned.to(read.dtype)], dim=1
        )  # (B * C, T + M)
        logits = self.logits({"input_ids": follow_ids}, mask, learned, cache)  # (N, V)
        rest = logits.float().log_softmax(-1).gather(-1, wanted_ids[learned][:, None])[:, 0]  # (N,)
        each = torch.zeros_like(follow_ids, dtype=rest.dtype).masked_scatter(learned, rest)  # (B * C, M)
        return first[:, [ids[0] for ids in label_ids]] + each.sum(-1).view(rows, classes)

    def _scores_read_in_full(
        self, input_ids: Tensor, attention_mask: Tensor, label_ids: tuple[tuple[int, ...], ...]
    ) -> Tensor:
        """Without keys and values to go on from, the text is read again for every label: (B, C)."""
        scores = []
        for label in label_ids:
            ids = nn.functional.pad(input_ids, (0, len(label)))  # (B, T + M)
            places = torch.arange(ids.shape[1], device=ids.device) - attention_mask.sum(1, keepdim=True)
            wanted = torch.tensor(label, device=ids.device).repeat(len(ids))  # (B * M,)
            ids = ids.masked_scatter((places >= 0) & (places < len(label)), wanted)
            keep = (places >= -1) & (places < len(label) - 1)
            logits = self.forward_concatenated(ids, (places < len(label)).long(), keep)  # (B * M, V)
            each = logits.float().log_softmax(-1).gather(-1, wanted[:, None])  # (B * M, 1)
            scores.append(each.view(len(ids), len(label)).sum(-1))
        return torch.stack(scores, dim=1)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, prefix: Prefix | None = None, **generation: Any
    ) -> Tensor:
        """transformers' `generate` behind the prompt: the input ids (left-padded) followed by new tokens."""
        decoding = Decoding.asked(self.lm.model, generation, input_ids.shape[1])
        refuse(decoding, attention_mask)
        ids, mask = self.front.behind(input_ids, attention_mask)
        prefix = prefix if prefix is not None else self.prefix()
        if not mask.any(1).all():
            prefix = None  # where nothing stands behind the prompt, its own end has to be read again
        new = (
            self._new_tokens_by_length(ids, mask, prefix, decoding)
            if self._padding_hides_the_prefix(mask, prefix, decoding)
            else self._new_tokens(*unpadded(ids, mask), prefix, decoding)
        )  # (B * sequences, M)
        return torch.cat([input_ids.repeat_interleave(decoding.sequences, dim=0), new], dim=1)

    def _padding_hides_the_prefix(
        self, attention_mask: Tensor, prefix: Prefix | None, decoding: Decoding
    ) -> bool:
        """Padding stands between prefix and text, and to a sliding window it is as long as words."""
        lengths = attention_mask.sum(1)
        if prefix is None or lengths.min() == lengths.max():
            return False
        nearest = window(self.lm.model)
        return nearest is not None and prefix.length + int(lengths.max()) + decoding.new_tokens > nearest

    def _new_tokens_by_length(
        self, input_ids: Tensor, attention_mask: Tensor, prefix: Prefix | None, decoding: Decoding
    ) -> Tensor:
        lengths, parts = attention_mask.sum(1), []
        for length in lengths.unique().tolist():
            rows = lengths == length
            ids = input_ids[rows, -length:]
            new = self._new_tokens(ids, torch.ones_like(ids), prefix, decoding)
            parts.append((rows.repeat_interleave(decoding.sequences).nonzero()[:, 0], new))
        return side_by_side(parts, decoding.pad_id)

    def _new_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, prefix: Prefix | None, decoding: Decoding
    ) -> Tensor:
        model, behind = self.lm.model, {"attention_mask": attention_mask}
        if prefix is None and self.prompt is not None:
            if decoding.is_assisted:
                raise UserMistake(
                    "Assisted generation reads words alone, and here virtual tokens are among them."
                )
            embeddings, mask = padding_first(self.embedded(input_ids), self.front.seen(attention_mask))
            behind = {"inputs_embeds": embeddings, "attention_mask": mask}
            input_ids = input_ids.where(input_ids >= 0, decoding.pad_id)  # in a virtual token's place
        cache: dict[str, Any] = {}
        if prefix is not None:
            mask = self.front.seen(attention_mask)
            behind = {"attention_mask": mask, **self._positions(mask, prefix.length)}
            cache = {"past_key_values": cache_behind(prefix, model, decoding, input_ids)}
            decoding = decoding.but(cache_implementation=None)
        try:
            # the last token of each row is a slice, for which PyTorch multiplies a copy of the head a row
            with head_sees(model, Tensor.contiguous):
                whole = model.generate(input_ids=input_ids, **behind, **cache, **decoding.options)
        except ValueError as error:  # what this family, or transformers at all, cannot do
            raise UserMistake(f"This LM cannot generate so: {' '.join(str(error).split())}") from error
        return whole[:, input_ids.shape[1] :]

    def is_laid_out(self, keep: Tensor) -> bool:
        """Whether the LM reads one pack where `forward` is asked for these: it may be read beside others."""
        return self.lm.packs and not self._copies and not self.front.is_asked(keep)

    def laid_out(
        self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor, prefix: Prefix | None = None
    ) -> LaidOut:
        """That pack."""
        input_ids, attention_mask = self.front.behind(input_ids, attention_mask)
        keep = self.front.kept_behind(keep)
        lead = self._lead(input_ids, attention_mask, keep)
        rest = attention_mask[:, lead:].bool()
        ids = torch.cat([input_ids[0, :lead], input_ids[:, lead:][rest]])[None]  # (1, N)
        keep = nn.functional.pad(keep[:, lead:][rest], (lead, 0))[None]
        if prefix is None and isinstance(self.prompt, EmbeddingPrompt):
            keep = nn.functional.pad(keep, (self.front.length, 0))
            pack = Pack.of(rest, shared=self.front.length + lead)
            return LaidOut({"inputs_embeds": self.embedded(ids)}, pack, keep)
        prefix = prefix if prefix is not None else self.prefix()
        return LaidOut({"input_ids": ids}, Pack.of(rest, shared=lead, prefix=prefix), keep)

    def _lead(self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor) -> int:
        return common_lead(input_ids, attention_mask, keep) if self.lm.shape.all_layers_attend else 0

    def logits(
        self, tokens: dict[str, Tensor], attention_mask: Tensor, keep: Tensor, cache: Cache | None
    ) -> Tensor:
        """Logits (N, V) of `tokens` where `keep` is True, on top of all that `cache` holds; the mask tells of
        both, save the virtual tokens.
        """
        mask = self.front.seen(attention_mask)  # (B, n + P + all tokens so far)
        with head_sees_only(self.lm.model, keep):
            return self.lm.model(
                **tokens,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=False,  # the one it is given is used; none is made
                **self._positions(mask, mask.shape[1] - keep.shape[1]),
            ).logits[0]

    def tokens(self, input_ids: Tensor) -> dict[str, Tensor]:
        """As the LM takes them behind a prefix: embedded only where virtual tokens stand among the words."""
        return {"inputs_embeds": self.embedded(input_ids)} if self.in_rows else {"input_ids": input_ids}

    def embedded(self, input_ids: Tensor) -> Tensor:
        """Embedded rows behind the front, (B, n + P + T, H), or virtual tokens in their places, (B, T, H)."""
        assert self.prompt is not None
        virtual = self.prompt().to(self.lm.dtype)  # (P, H)
        words = self.lm.embed(input_ids.clamp(min=0))
        if self.in_rows:
            return torch.where((input_ids < 0)[..., None], virtual[(-1 - input_ids).clamp(min=0)], words)
        front = self.front.embeddings(virtual)  # (n + P, H)
        return torch.cat([front.expand(len(input_ids), -1, -1), words], dim=1)

    def _positions(self, mask: Tensor, start: int) -> dict[str, Tensor]:
        if not self._takes_positions:  # Bloom reads its own from the mask
            return {}
        return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, start:]}


def scores_of_one_token(logits: Tensor, label_ids: Sequence[tuple[int, ...]]) -> Tensor:
    """Log-probability of labels that are one token each, where (B, V) say what comes next: (B, C)."""
    return logits.float().log_softmax(-1)[:, [label[0] for label in label_ids]]
