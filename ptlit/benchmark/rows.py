"""The rows that everybody trains on: the same ones in batches by chance and in batches of like length."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ptlit.benchmark.answers import Questions
from ptlit.benchmark.case import Node, Nodes, Row, made
from ptlit.benchmark.engines.padded import PaddedLoss
from ptlit.data import ClassificationData, sampler
from ptlit.data.collate import IndexedRow
from ptlit.data.example import NOT_LEARNED
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.peft_format import write_adapter
from ptlit.prompt import SoftPrompt
from ptlit.prompt.init import start_prompt

Batches = dict[str, list[list[Row]]]


@dataclass(frozen=True)
class AboutLM:
    name: str
    dtype: str
    parameters: int


class Rows:
    """Lives in a worker, so that the parent loads neither LM nor data."""

    def __init__(self, nodes: Nodes, chat: dict[str, int] | None = None):
        self.lm: FrozenLM = made(nodes.model).to(torch.device(nodes.device))
        data: ClassificationData = made(nodes.data, tokenizer=self.lm.tokenizer, seed=nodes.seed)
        data.setup()
        self.data = data
        self.seed = nodes.seed
        self.path = data.path
        self.rows = chats(data.encoded["train"], nodes.seed, **chat) if chat else data.encoded["train"]

    def about_lm(self) -> AboutLM:
        dtype = str(self.lm.dtype).removeprefix("torch.")
        name = Path(self.lm.name).name  # without the folder it lies in
        return AboutLM(name, dtype, sum(parameter.numel() for parameter in self.lm.parameters()))

    def batches(self, batch_size: int, count: int) -> Batches:
        """`count` batches of like length, from short to long in even steps; and their rows shuffled. They are
        as `data.stratified=false` has them, which is where padding costs other programs least.
        """
        lengths = [len(row["input_ids"]) for row in self.rows]
        every = sampler.Batches(lengths, batch_size, seed=self.seed)
        bucketed = [batch for batch in every if len(batch) == batch_size]
        if len(bucketed) < count:
            raise UserMistake(
                f"{self.path} has {len(self.rows):,} training rows, too few for benchmark.batches={count} "
                f"with {batch_size} rows each."
            )
        bucketed.sort(key=lambda batch: sum(lengths[row] for row in batch))
        chosen = [bucketed[(2 * i + 1) * len(bucketed) // (2 * count)] for i in range(count)]
        order = [row for batch in chosen for row in batch]
        generator = torch.Generator().manual_seed(self.seed)
        order = [order[i] for i in torch.randperm(len(order), generator=generator).tolist()]
        by_chance = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        return {
            "bucketed": [[self.rows[row] for row in batch] for batch in chosen],
            "random": [[self.rows[row] for row in batch] for batch in by_chance],
        }

    @torch.no_grad()
    def untrained_loss(self, rows: list[Row]) -> float:
        """What transformers gives without a prompt: where LoRA and full fine-tuning begin."""
        return float(PaddedLoss(self.lm, self.lm.model)(rows))

    def questions(self, batch_size: int, count: int, new_tokens: int, split: str = "test") -> Questions:
        """Texts of a split, in each batch of one length, and the lengths from long to short."""
        by_length: dict[int, list[list[int]]] = defaultdict(list)
        for row in self.data.encoded[split]:
            text = text_alone(row)
            by_length[len(text)].append(text)
        found = [
            texts[i : i + batch_size]
            for _, texts in sorted(by_length.items(), reverse=True)
            for i in range(0, len(texts) - batch_size + 1, batch_size)
        ]
        if len(found) < count:
            raise UserMistake(
                f"{self.path} has only {len(found)} batches of {batch_size} {split} texts of one length: "
                f"lower benchmark.batches={count} or benchmark.batch_size."
            )
        chosen = [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]
        return Questions(chosen, self.data.label_words.token_ids, new_tokens)

    def write_adapter(self, node: Node, folder: Path, start: str = "text", number: int = 0) -> None:
        """An untrained prompt that starts from the task in words, or from words by chance."""
        torch.manual_seed(self.seed + number)
        prompt: SoftPrompt = made(node, shape=self.lm.shape).to(self.lm.device)
        start_prompt(prompt, self.lm, from_=start, text=self.data.instruction)
        write_adapter(folder, prompt, self.lm.shape, self.lm.name)


def text_alone(row: IndexedRow) -> list[int]:
    """Without its label, which ends the row."""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return [token for token, label in pairs if label == NOT_LEARNED]


def chats(
    rows: Sequence[IndexedRow], seed: int, shortest: int, longest: int, learned: int
) -> list[IndexedRow]:
    """Rows as long as chats, put together from short ones; the end is learned, as an answer is."""
    generator = torch.Generator().manual_seed(seed)
    made: list[IndexedRow] = []
    ids: list[int] = []
    wanted = shortest
    for index in torch.randperm(len(rows), generator=generator).tolist():
        ids = ids + rows[index]["input_ids"]
        if len(ids) >= wanted:
            labels = [-100] * (wanted - learned) + ids[wanted - learned : wanted]
            made.append(IndexedRow(input_ids=ids[:wanted], labels=labels, label=0, row=len(made)))
            ids = []
            wanted = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
    return made
