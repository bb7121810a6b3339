"""A file of texts through the LM: read as a stream, answered chunk by chunk, never held in memory."""

from collections.abc import Iterator, Mapping
from itertools import islice

import lightning as L
import numpy
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset
from tqdm import tqdm

from ptlit.data import Batch
from ptlit.data.collate import Collate, IndexedRow
from ptlit.data.example import encode_all
from ptlit.data.rows import SourceRow
from ptlit.data.texts import Numbered, Survey, TextFile
from ptlit.many_prompts import ManyPrompts
from ptlit.run import Run
from ptlit.unfinished import Unfinished


class TextRow(IndexedRow):
    run: int  # which of the runs answers


class TextBatch(Batch):
    run: Tensor  # (B,)


class TextBatches(IterableDataset[TextBatch]):
    """The batches of all chunks that are not answered yet; within a chunk the longest rows come first,
    whichever run answers them.
    """

    def __init__(
        self,
        file: TextFile,
        survey: Survey,
        unfinished: Unfinished,
        runs: Mapping[str, Run],
        chunk_size: int,
        batch_size: int,
    ):
        self.file = file
        self.survey = survey
        self.unfinished = unfinished
        self.runs = runs
        self.tokenizer = next(iter(runs.values())).lm.tokenizer
        self.chunk_size = chunk_size
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[TextBatch]:
        collate = Collate(self.tokenizer.pad_token_id or 0)
        rows = (row for _, _, row in self.file.rows())
        chunk = 0
        while here := list(islice(rows, self.chunk_size)):
            if not self.unfinished.has(chunk):
                encoded = self._encoded(here, chunk * self.chunk_size)
                for start in range(0, len(encoded), self.batch_size):
                    batch = encoded[start : start + self.batch_size]
                    yield TextBatch(**collate(batch), run=torch.tensor([row["run"] for row in batch]))
            chunk += 1

    def _encoded(self, rows: list[SourceRow | str], first: int) -> list[TextRow]:
        numbered = enumerate(rows, start=first)
        left_out = self.survey.without_room
        usable = [(i, row) for i, row in numbered if not isinstance(row, str) and i not in left_out]
        found: list[TextRow] = []
        for place, (name, run) in enumerate(self.runs.items()):
            assert run.template is not None and run.label_words is not None
            spare = run.label_words.longest  # the same of a text is read as where a label follows
            own = rows_of(name, self.file, usable)
            examples = [run.template.example(row["text"], row["fields"], spare=spare) for _, row in own]
            encoded, _ = encode_all(examples, self.tokenizer, run.max_length)
            found += [TextRow(**row, row=i, run=place) for (i, _), row in zip(own, encoded, strict=True)]
        return sorted(found, key=lambda row: -len(row["input_ids"]))


def without_room(file: TextFile, runs: Mapping[str, Run], rows: Numbered) -> dict[int, str]:
    """Which rows are too long for their run however much of the text is cut, and why."""
    found: dict[int, str] = {}
    for name, run in runs.items():
        assert run.template is not None and run.label_words is not None
        own = rows_of(name, file, rows)
        fields = [row["fields"] for _, row in own]
        bad = run.template.without_room(fields, run.label_words, run.lm.tokenizer, run.max_length)
        found |= {own[place][0]: why for place, why in bad.items()}
    return found


def rows_of(name: str, file: TextFile, rows: Numbered) -> Numbered:
    """Those that this run answers."""
    return [(i, row) for i, row in rows if file.run_of(row) == name]


class AnswersOfMany(L.LightningModule):
    """Each row of a batch is answered by the run that it belongs to."""

    def __init__(self, prompts: ManyPrompts):
        super().__init__()
        self.prompts = prompts

    def predict_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        known = list(self.prompts.prompts)
        names = [known[place] for place in batch["run"].tolist()]
        scores = self.prompts.label_scores(names, batch["input_ids"], batch["attention_mask"])
        return {"row": batch["row"], "scores": scores}


class Answering(L.Callback):
    """Keeps the probabilities of each chunk as soon as its last row is answered, and shows how far it is."""

    def __init__(self, survey: Survey, unfinished: Unfinished, chunk_size: int, classes: int):
        self.survey = survey
        self.unfinished = unfinished
        self.chunk_size = chunk_size
        self.classes = classes
        self._answers: dict[int, NDArray[numpy.float32]] = {}  # of the chunks under way
        self._to_come: dict[int, int] = {}

    def on_predict_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        done = sum(rows for chunk, rows in enumerate(self.survey.usable) if self.unfinished.has(chunk))
        self._bar = tqdm(total=sum(self.survey.usable), initial=done, unit=" rows", desc="Answering")
        for chunk, rows in enumerate(self.survey.usable):
            if not rows and not self.unfinished.has(chunk):
                self.unfinished.put(chunk, self._nothing(chunk))

    def on_predict_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: dict[str, Tensor], *batch: object
    ) -> None:
        probabilities = outputs["scores"].softmax(-1).cpu().numpy()
        places = outputs["row"].tolist()
        chunk = places[0] // self.chunk_size  # a batch lies within one
        answers = self._answers.setdefault(chunk, self._nothing(chunk))
        answers[[place - chunk * self.chunk_size for place in places]] = probabilities
        self._to_come[chunk] = self._to_come.get(chunk, self.survey.usable[chunk]) - len(places)
        if not self._to_come[chunk]:
            self.unfinished.put(chunk, self._answers.pop(chunk))
            del self._to_come[chunk]
        self._bar.update(len(places))
        if trainer.received_sigterm:  # Lightning heeds it in training and testing only
            raise SIGTERMException

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._bar.close()

    def _nothing(self, chunk: int) -> NDArray[numpy.float32]:
        rows = min(self.chunk_size, self.survey.rows - chunk * self.chunk_size)
        return numpy.full((rows, self.classes), numpy.nan, dtype=numpy.float32)
