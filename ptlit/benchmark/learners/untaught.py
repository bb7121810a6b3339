"""Those that learn nothing: the LM with the template alone, behind an instruction (the hard prompt) or
behind solved rows too, and a constant answer.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ptlit.benchmark.learners import AfterStep, Given, Learner
from ptlit.data import Batch
from ptlit.data.example import leading_tokens
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix
from ptlit.prompt import PromptTuning
from ptlit.prompted_lm import PromptedLM


class Untaught(Learner):
    """Interface."""

    learned: Mapping[str, nn.Parameter] = {}

    def fit(self, batches: Iterable[Batch], after_step: AfterStep) -> None:
        """Nothing."""

    def begin_judging(self) -> None:
        """Nothing to prepare."""


class LabelsOnly(Untaught):
    """Interface."""

    def logits(self, ids: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        raise AssertionError("asked for text, where labels alone are answered")


class Untrained(Untaught):
    """The template is all that tells the LM what is asked."""

    def __init__(self, given: Given):
        self.model = self.prompted_lm = PromptedLM(given.lm, None)

    def word_scores(self, ids: Tensor, mask: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
        return self.prompted_lm.label_scores(ids, mask, words)

    def logits(self, ids: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        return self.prompted_lm(ids, mask, keep)


def hard(given: Given) -> "InContext":
    """The instruction that ptlit's prompts start from."""
    return InContext(given, said(given, given.data.instruction))


def few_shot(given: Given) -> "InContext":
    """The same, and solved rows."""
    return InContext(given, [*said(given, given.data.instruction), *solved_rows(given)])


class InContext(LabelsOnly):
    """The same tokens stand before every text: to ptlit a prompt that is not soft, read once for all."""

    def __init__(self, given: Given, context: Sequence[int]):
        lm, lead = given.lm, leading_tokens(given.lm.tokenizer)
        self.lead = len(lead)  # what a text begins with stands before the context instead
        self.context = torch.tensor([*lead, *context], device=lm.device)  # (P,)
        longest, room = lm.shape.max_positions, len(self.context) + given.data.max_length
        if longest is not None and room > longest:
            raise UserMistake(
                f"benchmark.shots={given.plan.shots} takes {len(self.context)} tokens, which with "
                f"data.max_length={given.data.max_length} exceed the {longest} that this LM can read: lower "
                "one of them."
            )
        prompt = PromptTuning(lm.shape, len(self.context))
        prompt.start_at(lm.embed(self.context).float())
        self.model = self.prompted_lm = PromptedLM(lm, prompt.to(lm.device))
        self.prefix: Prefix | None = None

    def begin_judging(self) -> None:
        self.prefix = self.prompted_lm.prefix()

    def word_scores(self, ids: Tensor, mask: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
        text = ids[:, self.lead :], mask[:, self.lead :]
        return self.prompted_lm.label_scores(*text, words, self.prefix)


def said(given: Given, text: str) -> list[int]:
    return list(given.lm.tokenizer(f"{text}\n\n", add_special_tokens=False)["input_ids"])


def solved_rows(given: Given) -> list[int]:
    """`shots` of every label with their answers, chosen and mixed by the seed, two line breaks after each."""
    order = list(range(len(given.rows)))
    chance = random.Random(given.trial.seed)
    chance.shuffle(order)
    by_label = defaultdict(list)
    for place in order:
        by_label[given.rows[place]["label"]].append(place)
    chosen = [place for places in by_label.values() for place in places[: given.plan.shots]]
    chance.shuffle(chosen)
    lead, space = leading_tokens(given.lm.tokenizer), said(given, "")
    rows = [given.rows[place]["input_ids"][len(lead) :] for place in chosen]
    return [token for row in rows for token in [*row, *space]]


class Majority(LabelsOnly):
    """Always the most frequent label of the training rows."""

    def __init__(self, given: Given):
        assert given.data.label_words is not None
        self.model = nn.Identity()
        counts = Counter(row["label"] for row in given.rows)
        self.word = given.data.label_words.firsts[counts.most_common(1)[0][0]]

    def word_scores(self, ids: Tensor, mask: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
        sure = torch.tensor([0.0 if word == self.word else -100.0 for word in words])
        return sure.expand(len(ids), -1)  # (B, W)
