"""What a prompt has become: near which words, how far from its start, and how much a text looks at it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.prefix import Prefix
from ptlit.prompt import EmbeddingPrompt
from ptlit.prompt.init import room_behind, text_ids
from ptlit.prompted_lm import PromptedLM
from ptlit.run import Run, leading

SLICE = 8192  # words that are compared at a time


@dataclass(frozen=True)
class Start:
    """`learned` is None where it cannot be rebuilt; `note` then says why."""

    learned: Tensor | None  # (P, H) or (L, 2, P, K, D)
    words: tuple[str, ...]
    note: str


@torch.no_grad()
def start_of(run: Run) -> Start:
    prompt = run.prompted_lm.prompt
    assert prompt is not None
    init = run.cfg.prompt.get("init") or {}
    source, text = init.get("from", "text"), init.get("text") or run.cfg.data.get("instruction")
    if source != "text":
        return Start(
            None,
            (),
            f"It started from {source}, which cannot be rebuilt: nothing is said of how far it moved.",
        )
    if not text:
        return Start(None, (), "The text it started from was not noted: nothing is said of how far it moved.")
    deep = not isinstance(prompt, EmbeddingPrompt)
    began_behind_bos = deep and "lm_scale" in run.cfg.prompt  # earlier versions did not
    behind = leading(run.cfg, run.lm, run.template) if began_behind_bos else []
    first = room_behind(behind, prompt.num_virtual_tokens)
    said = text_ids(run.lm, text, prompt.num_virtual_tokens - len(first))
    ids = torch.cat([torch.tensor(first, dtype=said.dtype, device=said.device), said])
    learned = run.lm.embed(ids)  # (P, H)
    if deep:
        learned = Prefix.from_embeddings(learned, run.lm.model).stacked()  # (L, 2, P, K, D)
    words = tuple(word(run.lm, index) for index in ids.tolist())
    return Start(learned.float(), words, f"It started from {text!r}.")


def word(lm: FrozenLM, index: int) -> str:
    """A token as it can be read on one line."""
    text = str(lm.tokenizer.decode([index]))
    if "\N{REPLACEMENT CHARACTER}" in text:  # a part of a character
        text = str(lm.tokenizer.convert_ids_to_tokens(index))
    return repr(text)[1:-1].replace(" ", "\N{OPEN BOX}")


@torch.no_grad()
def nearest_words(lm: FrozenLM, embeddings: Tensor, count: int) -> list[list[tuple[str, float]]]:
    """For each of (P, H) the words whose embeddings point most nearly the same way, with the cosines."""
    directions = torch.nn.functional.normalize(embeddings.float(), dim=-1)
    cosines = torch.cat(
        [directions @ torch.nn.functional.normalize(words, dim=-1).T for words in embedded_words(lm)], dim=1
    )  # (P, V)
    best = cosines.topk(min(count, cosines.shape[1]), dim=1)
    return [
        [(word(lm, index), cosine) for index, cosine in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.no_grad()
def usual_length(lm: FrozenLM) -> float:
    """The median length of a word's embedding."""
    return float(torch.cat([words.norm(dim=-1) for words in embedded_words(lm)]).median())


def embedded_words(lm: FrozenLM) -> Iterator[Tensor]:
    """As the LM's first step makes them, without the rows that no token has."""
    ids = torch.arange(len(lm.tokenizer), device=lm.device)
    return (lm.embed(some).float() for some in ids.split(SLICE))


@torch.no_grad()
def attention_received(prompted_lm: PromptedLM, rows: Sequence[Tensor]) -> Tensor:
    """(L, P): the share of its attention that a token of the text pays to each virtual token, the mean over
    heads, the tokens of a row, and rows (T,).
    """
    lm, front, prefix = prompted_lm.lm.model, prompted_lm.front, prompted_lm.prefix()
    if prefix is None and not prompted_lm.in_rows:
        raise UserMistake("Not every layer of this LM attends, so there is no attention to show.")
    shares = []
    with attentions_kept(lm):
        for row in rows:
            (ids,), text = front.behind(row[None], torch.ones_like(row)[None])
            seen = front.seen(text)
            read = lm(
                **prompted_lm.tokens(ids[None]),
                attention_mask=seen,
                past_key_values=prefix.shared_cache() if prefix is not None else None,
                use_cache=False,
                output_attentions=True,
            )
            if not read.attentions or read.attentions[0] is None:
                raise UserMistake("This LM does not tell how it attends.")
            places = torch.arange(len(front.leading), front.length, device=ids.device)
            virtual = (ids < 0).nonzero()[:, 0] if prefix is None else places
            paid = [layer[0, :, ids >= 0][:, :, virtual] for layer in read.attentions]  # L of (heads, T, P)
            shares.append(torch.stack([each.float().mean((0, 1)) for each in paid]))
    return torch.stack(shares).mean(0).cpu()


@contextmanager
def attentions_kept(model: PreTrainedModel) -> Iterator[None]:
    """Only the plain implementation can tell how it attended."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = usual


@torch.no_grad()
def lengths_in_texts(lm: FrozenLM, rows: Sequence[Tensor]) -> Tensor:
    """(L, 2): the mean lengths of the keys and of the values of words, in texts without a prompt."""
    each = [lengths(Prefix.from_embeddings(lm.embed(ids), lm.model).stacked()) for ids in rows]
    return torch.stack(each).mean(0)


def lengths(key_values: Tensor) -> Tensor:
    """(L, 2, P, K, D) to (L, 2)."""
    return key_values.float().norm(dim=-1).mean((2, 3))
