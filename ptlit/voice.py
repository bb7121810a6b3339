"""One who replies in a chat: a trained prompt or the untrained LM, with the way it reads a dialogue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from ptlit.data import ChatTemplate
from ptlit.data.chat import without_oldest_turn
from ptlit.data.dialogues import Message
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix
from ptlit.prompted_lm import PromptedLM
from ptlit.replies import reply_ids


@dataclass
class Voice:
    name: str
    prompted_lm: PromptedLM
    template: ChatTemplate
    settings: GenerationConfig
    system: str | None = None

    @cached_property
    def untrained(self) -> "Voice":
        return replace(self, name="untrained LM", prompted_lm=PromptedLM(self.prompted_lm.lm.untrained, None))

    @cached_property
    def prefix(self) -> Prefix | None:
        """Computed once, whatever is said."""
        with torch.no_grad():
            return self.prompted_lm.prefix()

    def reply(self, history: Sequence[Message], streamer: BaseStreamer | None = None) -> str:
        ids = reply_ids(self.prompted_lm, self.read(history), self.settings, self.prefix, streamer)
        return self.template.reply(ids)

    def read(self, history: Sequence[Message]) -> list[int]:
        system = [Message(role="system", content=self.system)] if self.system else []
        return self.template.ids([*system, *history])

    def fitting(self, history: Sequence[Message]) -> list[Message]:
        """The dialogue, without its oldest turns where they leave no room for a reply."""
        longest = self.prompted_lm.lm.shape.max_positions
        taken = self.prompted_lm.num_virtual_tokens + (self.settings.max_new_tokens or 0)
        kept = list(history)
        while longest is not None and taken + (count := len(self.read(kept))) > longest:
            shorter = without_oldest_turn(kept)
            if shorter is None:
                raise UserMistake(
                    f"This takes {count:,} tokens and the LM reads {longest:,} with its reply: say it"
                    " shorter or lower max_new_tokens."
                )
            kept = shorter
        return kept
