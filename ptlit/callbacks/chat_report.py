"""What a person wants to see of a trained chat: replies before and after, and what the LM has forgotten."""

from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from ptlit.data import ChatData
from ptlit.module import SoftPromptModule
from ptlit.prompted_lm import PromptedLM
from ptlit.replies import generation, perplexity, reply_ids


@dataclass(frozen=True)
class Sample:
    question: str
    meant: str  # the reply of the data
    before: str  # that of the untrained LM
    after: str  # that of the trained prompt


class ChatReport(L.Callback):
    """When a test ends, asks the first questions of its rows of the untrained LM and of the trained prompt.

    `forgetting` measures the LM's own behaviour: how well each predicts the replies that the untrained LM
    gave. A prompt that leaves the LM as it was keeps this perplexity low.
    """

    def __init__(self, num_rows: int = 6, max_new_tokens: int = 32, forgetting: bool = True):
        self.num_rows = num_rows
        self.max_new_tokens = max_new_tokens
        self.forgetting = forgetting
        self.samples: list[Sample] = []

    def on_test_epoch_end(self, trainer: L.Trainer, module: SoftPromptModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ChatData) or not self.num_rows:
            return
        prompted_lm = module.prompted_lm
        untrained = PromptedLM(prompted_lm.lm.untrained, None)
        asked = self._questions(data, prompted_lm)
        if not asked:
            return
        read = [data.template.ids(data.rows["test"][row]["messages"][:reply]) for row, reply in asked]
        before, after = (self._replies(each, read, data) for each in (untrained, prompted_lm))
        self.samples = [
            Sample(
                question=data.rows["test"][row]["messages"][reply - 1]["content"],
                meant=data.rows["test"][row]["messages"][reply]["content"],
                before=data.template.reply(one),
                after=data.template.reply(other),
            )
            for (row, reply), one, other in zip(asked, before, after, strict=True)
        ]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("test/replies", self._table(), trainer.global_step)
        if self.forgetting:
            own = list(zip(read, before, strict=True))
            module.log("forgetting/perplexity_untrained", perplexity(untrained, own))
            module.log("forgetting/perplexity_trained", perplexity(prompted_lm, own))

    def _questions(self, data: ChatData, prompted_lm: PromptedLM) -> list[tuple[int, int]]:
        """Rows of test and the place of their first reply whose weight is not 0, if the LM has room."""
        longest = prompted_lm.lm.shape.max_positions
        found = []
        for row, dialogue in enumerate(data.rows["test"]):
            reply = next(
                i
                for i, said in enumerate(dialogue["messages"])
                if said["role"] == "assistant" and "weight" not in said
            )
            needed = len(data.template.ids(dialogue["messages"][:reply])) + self.max_new_tokens
            if longest is None or prompted_lm.num_virtual_tokens + needed <= longest:
                found.append((row, reply))
            if len(found) == self.num_rows:
                break
        return found

    def _replies(
        self, prompted_lm: PromptedLM, read: Sequence[Sequence[int]], data: ChatData
    ) -> list[list[int]]:
        stops = data.template.stop_ids, data.template.stop_strings
        settings = generation(*stops, data.tokenizer.pad_token_id, self.max_new_tokens)
        prefix = prompted_lm.prefix()
        return [reply_ids(prompted_lm, ids, settings, prefix) for ids in read]

    def _table(self) -> str:
        lines = ["| question | reply in the data | untrained LM | trained prompt |", "|---|---|---|---|"]
        for sample in self.samples:
            cells = (sample.question, sample.meant, sample.before, sample.after)
            lines.append(f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |")
        return "\n".join(lines)
