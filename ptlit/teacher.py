"""Distillation: a run learns from the predictions of an earlier one on the same LM, a larger prompt say."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptlit.build import check_room, options_of
from ptlit.data import ChatData, ClassificationData, TextData
from ptlit.ensemble import size_of
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.reference import Reference
from ptlit.rows_seen import rows_seen
from ptlit.run import Run, open_run, read_config
from ptlit.run_folder import RunFolder


@dataclass(frozen=True)
class Teacher:
    """The best checkpoint of `run`; `weight` times the divergence from what it predicts is minimised too.
    Both predictions are made softer by a higher `temperature`.
    """

    run: str | None = None
    weight: float = 1.0
    temperature: float = 1.0
    trust_code: bool = False

    def __post_init__(self) -> None:
        if self.run is not None and not RunFolder(Path(self.run).expanduser()).config.is_file():
            raise UserMistake(f"distill.run={self.run} is no run folder: it has no config.yaml.")
        if (
            self.run is not None
            and (count := size_of(read_config(RunFolder(Path(self.run).expanduser())))) > 1
        ):
            raise UserMistake(f"distill.run={self.run} is an ensemble of {count}: a teacher is one prompt.")
        if not 0 <= self.weight < math.inf:
            raise UserMistake(f"distill.weight={self.weight} must be 0 or more.")
        if not 0 < self.temperature < math.inf:
            raise UserMistake(f"distill.temperature={self.temperature} must be above 0.")

    def reference(self, lm: FrozenLM, data: TextData[Any]) -> Reference | None:
        """What a training on `lm` and `data` is held against; None where no run was named."""
        if self.run is None:
            return None
        run = open_run(Path(self.run).expanduser(), lm=lm.base, trust_code=self.trust_code)
        check_reading(run, data)
        check_room(run.prompted_lm, data.max_length)
        for sentence in rows_seen(run.folder.root, data):
            print(f"distill.run={self.run}: {sentence}", flush=True)
        return Reference("distill", run.prompted_lm, self.weight, self.temperature)


def check_reading(run: Run, data: TextData[Any]) -> None:
    if not reads_alike(run, data):
        dialogues = isinstance(data, ChatData)
        how = "chat template and data.system" if dialogues else "template and label words"
        raise UserMistake(
            f"distill.run={run.folder.root} reads rows in another way: give this run the {how} of that one."
        )


def reads_alike(run: Run, data: TextData[Any]) -> bool:
    """A teacher is asked about the rows as they are; virtual tokens within them may be left out for it."""
    if isinstance(data, ClassificationData) and run.template is not None and run.label_words is not None:
        mine, theirs = data.template, run.template
        same_slots = theirs.slots == 0 or theirs.pieces == mine.pieces
        same_words = run.label_words.token_ids == data.label_words.token_ids
        return same_slots and same_words and theirs.without_slots == mine.without_slots
    if isinstance(data, ChatData) and run.template is None:
        said = options_of(run.cfg.data)
        written = said.get("chat_template"), said.get("template_options") or {}
        same_system = (said.get("system") or "").strip() == (data.system or "")
        return same_system and written == (data.template.template, data.template.options)
    return False
