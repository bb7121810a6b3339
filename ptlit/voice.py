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
        return replace(self, name="untrained LM", prompted_lm=PromptedLM(self.prompted_lm.lm, None))

    @cached_property
    def prefix(self) -> Prefix | None:
        """Computed once, whatever is said."""
        with torch.no_grad():
            return self.prompted_lm.prefix()

    def reply(self, history: Sequence[Message], streamer: BaseStreamer | None = None) -> str:
        ids = reply_ids(self.prompted_lm, self.read(history), self.settings, self.prefix, streamer)
        return str(self.template.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def read(self, history: Sequence[Message]) -> list[int]:
        """The ids of the dialogue so far; where they leave no room for a reply, without its oldest turns."""
        system = [Message(role="system", content=self.system)] if self.system else []
        kept: list[Message] = [*system, *history]
        longest = self.prompted_lm.lm.shape.max_positions
        while True:
            ids = self.template.ids(kept)
            needed = self.prompted_lm.num_virtual_tokens + len(ids) + (self.settings.max_new_tokens or 0)
            if longest is None or needed <= longest:
                return ids
            shorter = without_oldest_turn(kept)
            if shorter is None:
                raise UserMistake(
                    f"This takes {len(ids):,} tokens and the LM reads {longest:,} with its reply: say it"
                    " shorter or lower max_new_tokens."
                )
            kept = shorter
