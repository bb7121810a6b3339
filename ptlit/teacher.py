"""Distillation: a run learns from the predictions of an earlier one on the same LM, a larger prompt say."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptlit.build import check_room, options_of
from ptlit.data import ChatData, ClassificationData, TextData
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.reference import Reference
from ptlit.run import Run, open_run
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
        return Reference("distill", run.prompted_lm, self.weight, self.temperature)


def check_reading(run: Run, data: TextData[Any]) -> None:
    """A teacher is asked about the rows as they are; virtual tokens within them may be left out for it."""
    same = False
    if isinstance(data, ClassificationData) and run.template is not None and run.label_words is not None:
        slots = run.template.slots == 0 or run.template.pieces == data.template.pieces
        same = slots and run.template.without_slots == data.template.without_slots
        same = same and run.label_words.token_ids == data.label_words.token_ids
    elif isinstance(data, ChatData) and run.template is None:
        theirs = options_of(run.cfg.data)
        written = theirs.get("chat_template"), theirs.get("template_options") or {}
        same = written == (data.template.template, data.template.options)
        same = same and (theirs.get("system") or "").strip() == (data.system or "")
    if not same:
        how = (
            "template and label words"
            if isinstance(data, ClassificationData)
            else "chat template and data.system"
        )
        raise UserMistake(
            f"distill.run={run.folder.root} reads rows in another way: give this run the {how} of that one."
        )
