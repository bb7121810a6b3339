"""Where a prompt starts: embeddings of its virtual tokens, or the keys and values that the LM makes of them.

`text` takes the words of the task, `labels` those of the labels, `vocabulary` frequent words by chance,
`spread` no words but numbers as widely spread as the LM's own embeddings, `zero` what says least. `noise`
leaves a prompt as its constructor made it, which with prompt.lm_scale=false is PEFT's start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix
from ptlit.prompt.base import EmbeddingPrompt, SoftPrompt
from ptlit.prompt.silence import silent_embeddings

STARTS = ("text", "labels", "vocabulary", "spread", "zero", "noise")
FROM_DATA = ("labels", "vocabulary", "zero")  # those that need a Task
COMMON = 5000  # words that `vocabulary` chooses from, as in Lester et al. (2021)
CHUNK = 4096  # embeddings that are looked at together


@dataclass(frozen=True)
class Task:
    """What the data offers to start from, in tokens."""

    labels: Sequence[Sequence[int]] = ()  # a word for each; none where text is learned
    common: Sequence[int] = ()  # the most frequent of the training rows
    texts: Sequence[Sequence[int]] = ()  # a few training rows, as far as they are read
    leading: int = 0  # tokens of each text that stand before the virtual tokens


def start_prompt(
    prompt: SoftPrompt,
    lm: FrozenLM,
    from_: str = "text",
    text: str | None = None,
    task: Task | None = None,
    behind: Sequence[int] = (),
    aside: float = 0.0,
) -> None:
    """Put `prompt` at its start; the same seed of torch's, the same start. Keys and values are those that
    words have `behind` the tokens with which rows begin, and those of these come first: many LMs make little
    of what they read without a BOS. The words are moved `aside` by chance, as a share of how they spread.
    """
    if from_ not in STARTS:
        raise UserMistake(f"prompt.init.from={from_!r} is not a start: choose one of {', '.join(STARTS)}.")
    if from_ == "noise":
        return
    task = task or Task()
    with torch.no_grad():
        if isinstance(prompt, EmbeddingPrompt):
            embeddings = start_embeddings(lm, from_, prompt.num_virtual_tokens, text, task)  # (P, H)
            prompt.start_at(moved(embeddings, aside, lm).float())
            return
        first = room_behind(behind, prompt.num_virtual_tokens) if from_ != "zero" else []  # tried as it is
        words = start_embeddings(lm, from_, prompt.num_virtual_tokens - len(first), text, task)
        read = lm.embed(torch.tensor(first, dtype=torch.long, device=lm.device))
        embeddings = torch.cat([read, moved(words, aside, lm)])
        prompt.start_at(Prefix.from_embeddings(embeddings, lm.model).stacked().float())


def moved(words: Tensor, aside: float, lm: FrozenLM) -> Tensor:
    """Embeddings (P, H), each by its own way; what says least may be all zeros, and takes the LM's spread."""
    if not aside:
        return words
    spread = words.std().item() or spread_embeddings(lm, 1).std().item()
    drawn = torch.randn(words.shape).to(words)  # on the CPU: the same on every device
    return words + aside * spread * drawn


def room_behind(behind: Sequence[int], count: int) -> list[int]:
    """The tokens that come first, where they leave room for any word."""
    return list(behind) if len(behind) < count else []


def start_embeddings(lm: FrozenLM, from_: str, count: int, text: str | None, task: Task) -> Tensor:
    if from_ == "zero":
        return silent_embeddings(lm, count, task.texts, task.leading)
    if from_ == "spread":
        return spread_embeddings(lm, count)
    if from_ == "text":
        return lm.embed(text_ids(lm, text, count))
    if from_ == "labels":
        return lm.embed(label_ids(lm, task.labels, count))
    return lm.embed(word_ids(lm, count, task.common))


def text_ids(lm: FrozenLM, text: str | None, count: int) -> Tensor:
    """The first `count` token ids of the text; of a shorter one copies, of which the last is whole."""
    if not text:
        raise UserMistake(
            "prompt.init.from=text needs a text: give prompt.init.text=... or data.instruction=..."
        )
    return repeated(lm, lm.tokenizer(text, add_special_tokens=False)["input_ids"], count)


def label_ids(lm: FrozenLM, labels: Sequence[Sequence[int]], count: int) -> Tensor:
    """The words of all labels one after the other, as `text_ids` takes a text."""
    if not labels:
        raise UserMistake(
            "prompt.init.from=labels needs data with labels, and here text is learned: choose another, such "
            "as prompt.init.from=text."
        )
    return repeated(lm, [token for word in labels for token in word], count)


def word_ids(lm: FrozenLM, count: int, common: Sequence[int] = ()) -> Tensor:
    """By chance among the tokens that the training rows hold most often, special ones left out.

    Any tokenizer's words can be counted there. Low ids are frequent words in some vocabularies and bytes or
    another language's in others; and most of a vocabulary has no bearing on the task. Without rows all of it
    is chosen from.
    """
    special = set(lm.tokenizer.all_special_ids)
    pool = [token for token in (common or range(len(lm.tokenizer))) if token not in special]
    chosen = [pool[place] for place in torch.randperm(len(pool)).tolist()[:count]]
    return repeated(lm, chosen, count)


def repeated(lm: FrozenLM, ids: Sequence[int], count: int) -> Tensor:
    chosen = ids[:count] if len(ids) >= count else (list(ids) * (count // len(ids) + 1))[-count:]
    return torch.tensor(chosen, device=lm.device)


def spread_embeddings(lm: FrozenLM, count: int) -> Tensor:
    """Normal, every coordinate with the mean and the standard deviation that it has over the LM's words."""
    words = torch.arange(len(lm.tokenizer), device=lm.device)
    total = squares = torch.zeros(lm.shape.hidden_size, dtype=torch.float64, device=lm.device)
    for chunk in words.split(CHUNK):
        embedded = lm.embed(chunk).double()  # (words, H)
        total, squares = total + embedded.sum(0), squares + embedded.square().sum(0)
    mean = total / len(words)
    deviation = (squares / len(words) - mean.square()).clamp(min=0).sqrt()
    drawn = torch.randn(count, lm.shape.hidden_size).to(lm.device)  # on the CPU: the same on every device
    return (mean + deviation * drawn).to(lm.dtype)
