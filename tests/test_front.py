"""Virtual tokens behind BOS: every route gives what plain transformers gives for [BOS, virtual, text]."""

from typing import Any

import pytest
import torch
from methods import make_prompt
from tiny import ARCHITECTURES, padded_rows, tiny_lm
from torch import Tensor

from ptlit.data import LabelWords
from ptlit.findings import attention_received, attentions_kept
from ptlit.leaning import leaning
from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.many_prompts import ManyPrompts
from ptlit.mistake import UserMistake
from ptlit.prompt.silence import little, silent_embeddings
from ptlit.prompted_lm import PromptedLM

LMS = (*ARCHITECTURES, "mamba")
LABELS = ((40, 41), (40,), (50, 60, 70))
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def lms() -> dict[str, FrozenLM]:
    found = {}
    for name in LMS:
        lm = tiny_lm(name, spread=0.3)
        found[name] = FrozenLM(lm.model.double(), lm.tokenizer)
    return found


def prompted(lm: FrozenLM, leading: tuple[int, ...] = (1,), method: str = "ptuning_mlp") -> PromptedLM:
    torch.manual_seed(7)
    prompt = make_prompt(method, lm.shape).double()
    for parameter in prompt.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return PromptedLM(lm, prompt, leading=leading).eval()


def rows_behind(leading: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded rows that begin with `leading`, then with two words that all of them share."""
    ids, mask, labels = padded_rows((15, 9, 8, 13))
    ids[:, : len(leading) + 2] = torch.tensor([*leading, 7, 8])
    return ids, mask, labels


def by_hand(prompted_lm: PromptedLM, ids: Tensor) -> Tensor:
    """Logits (P + T, V) of one row, without padding, of the plain LM."""
    words, place = prompted_lm.lm.model.get_input_embeddings(), len(prompted_lm.front.leading)
    parts = [words(ids[:place]), prompted_lm.prompt(), words(ids[place:])]
    return prompted_lm.lm.model(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]


def said_by_hand(prompted_lm: PromptedLM, ids: Tensor, count: int = 4) -> list[int]:
    for _ in range(count):
        ids = torch.cat([ids, by_hand(prompted_lm, ids)[-1:].argmax(-1)])
    return ids.tolist()


def scores_by_hand(prompted_lm: PromptedLM, ids: Tensor) -> Tensor:
    scores = []
    for label in LABELS:
        word = torch.tensor(label)
        logits = by_hand(prompted_lm, torch.cat([ids, word]))[-len(word) - 1 : -1]
        scores.append(logits.log_softmax(-1).gather(1, word[:, None]).sum())
    return torch.stack(scores).double()


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.detach().abs().max()))


@pytest.mark.parametrize("leading", [(1,), (1, 5)])
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("architecture", LMS)
def test_logits_and_gradients(
    lms: dict[str, FrozenLM], architecture: str, packs: bool, leading: tuple[int, ...]
) -> None:
    lm = lms[architecture]
    prompted_lm = prompted(FrozenLM(lm.model, lm.tokenizer), leading)
    prompted_lm.lm.may_pack &= packs
    weights = list(prompted_lm.prompt.parameters())
    ids, mask, labels = rows_behind(leading)
    keep, targets = learned_positions(labels)
    each = []
    for row, length, kept in zip(ids, mask.sum(1).tolist(), keep, strict=True):
        each.append(by_hand(prompted_lm, row[:length])[6:][kept[:length]])
    wanted = torch.cat(each)
    gradients = torch.autograd.grad(learned_token_loss(wanted, targets), weights, retain_graph=True)
    with torch.no_grad():
        prefix = prompted_lm.prefix()
    assert prefix is None or prefix.length == len(leading) + 6
    for found in (prompted_lm(ids, mask, keep), prompted_lm.forward_concatenated(ids, mask, keep)):
        close(found, wanted)
        for one, other in zip(
            torch.autograd.grad(learned_token_loss(found, targets), weights), gradients, strict=True
        ):
            assert one.abs().sum() > 0
            close(one, other)
    with torch.no_grad():
        close(prompted_lm(ids, mask, keep, prefix), wanted)


@pytest.mark.parametrize("architecture", LMS)
def test_labels_are_scored(lms: dict[str, FrozenLM], architecture: str) -> None:
    prompted_lm = prompted(lms[architecture])
    ids, mask, _ = rows_behind((1,))
    with torch.no_grad():
        found = prompted_lm.label_scores(ids, mask, LABELS)
        short = prompted_lm.label_scores(ids, mask, ((40,), (50,)))
        for row, length, score, one in zip(ids, mask.sum(1).tolist(), found, short, strict=True):
            wanted = scores_by_hand(prompted_lm, row[:length])
            torch.testing.assert_close(score.double(), wanted, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one[0].double(), wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba"])
def test_where_no_text_follows_the_prompt_itself_answers(lms: dict[str, FrozenLM], architecture: str) -> None:
    """A text that says nothing, or what an LM writes by itself."""
    prompted_lm = prompted(lms[architecture])
    ids, mask = torch.tensor([[1, 0, 0], [1, 9, 10]]), torch.tensor([[1, 0, 0], [1, 1, 1]])
    with torch.no_grad():
        found = prompted_lm.label_scores(ids, mask, LABELS)
        wanted = torch.stack([scores_by_hand(prompted_lm, row) for row in (ids[0, :1], ids[1])])
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
        words = LabelWords(("a", "b", "c"), (("a",), ("b",), ("c",)), LABELS, False, ((1,), (1, 9, 10)))
        torch.testing.assert_close(
            leaning(prompted_lm, words).double(), wanted.softmax(1).mean(0).log(), rtol=1e-5, atol=1e-5
        )
        keep = mask.bool()
        each = [by_hand(prompted_lm, ids[0, :1])[-1:], by_hand(prompted_lm, ids[1])[6:]]
        close(prompted_lm(ids, mask, keep), torch.cat(each))
        alone = prompted_lm.generate(ids[:1, :1], mask[:1, :1], **GREEDY)
        assert alone[0].tolist() == said_by_hand(prompted_lm, ids[0, :1])
        padded = torch.tensor([[0, 0, 1], [1, 9, 10]])
        both = prompted_lm.generate(padded, mask.flip(1), **GREEDY)
    assert both[0, 2:].tolist() == alone[0].tolist()
    assert both[1].tolist() == said_by_hand(prompted_lm, ids[1])


@pytest.mark.parametrize("architecture", LMS)
def test_it_writes_behind_left_padding(lms: dict[str, FrozenLM], architecture: str) -> None:
    """gemma3's sliding window of 16 is passed in some rows."""
    prompted_lm = prompted(lms[architecture])
    ids, mask, _ = rows_behind((1,))
    lengths = mask.sum(1).tolist()
    padded = torch.stack([row.roll(15 - length) for row, length in zip(ids, lengths, strict=True)])
    with torch.no_grad():
        written = prompted_lm.generate(padded, mask.flip(1), **GREEDY)
        assert torch.equal(written[:, :15], padded)
        for row, length, found in zip(ids, lengths, written, strict=True):
            assert found[15 - length :].tolist() == said_by_hand(prompted_lm, row[:length])


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_ways_of_writing(lms: dict[str, FrozenLM], architecture: str, how: dict[str, Any]) -> None:
    prompted_lm = prompted(lms[architecture])
    row = rows_behind((1,))[0][:1, :12]
    options = GREEDY | how
    beams = {key: value for key, value in options.items() if key in (*GREEDY, "num_beams")}
    with torch.no_grad():
        words = prompted_lm.lm.embed(row)
        embeds = torch.cat([words[:, :1], prompted_lm.prompt()[None], words[:, 1:]], dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        plain = prompted_lm.lm.model.generate(inputs_embeds=embeds, attention_mask=mask, **beams)
        found = prompted_lm.generate(row, torch.ones_like(row), **options)
    assert found[0].tolist() == [*row[0].tolist(), *plain[0].tolist()]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "gemma3"])
def test_many_prompts_at_both_places(lms: dict[str, FrozenLM], architecture: str) -> None:
    lm = lms[architecture]
    prompts = {
        "behind": prompted(lm),
        "before": PromptedLM(lm, make_prompt("prompt_tuning", lm.shape, num_virtual_tokens=3).double()),
        "deep": PromptedLM(lm, make_prompt("prefix_tuning", lm.shape).double(), leading=(1,)),
    }
    assert [each.front.leading for each in prompts.values()] == [(1,), (), ()]
    words = {
        name: LabelWords(("a", "b", "c"), (("a",), ("b",), ("c",)), LABELS, False, ((1, 9), (1,)))
        for name in prompts
    }
    one = {"behind": LabelWords(("a", "b"), (("a",), ("b",)), ((40,), (50,)), False)}
    ids, mask, _ = rows_behind((1,))
    names = ("behind", "deep", "before", "behind")
    lengths = mask.sum(1).tolist()
    padded = torch.stack([row.roll(15 - length) for row, length in zip(ids, lengths, strict=True)])
    with torch.no_grad():
        many = ManyPrompts(prompts, words)
        found = many.label_scores(names, ids, mask)
        written = many.generate(names, padded, mask.flip(1), **GREEDY)
        for i, (name, length) in enumerate(zip(names, lengths, strict=True)):
            row, own = ids[i : i + 1, :length], prompts[name].eval()
            wanted = own.label_scores(row, torch.ones_like(row), LABELS)[0] - leaning(own, words[name])
            torch.testing.assert_close(found[i], wanted, rtol=1e-4, atol=1e-4)
            alone = own.generate(row, torch.ones_like(row), **GREEDY)[0]
            assert written[i, 15 - length :].tolist() == alone.tolist()
        short = ManyPrompts({"behind": prompts["behind"]}, one).label_scores(["behind"] * 4, ids, mask)
        close(short, prompts["behind"].label_scores(ids, mask, ((40,), (50,))))
        with pytest.raises(UserMistake, match="no text behind its prompt"):
            many.label_scores(["behind"], ids[:1, :1], mask[:1, :1])


def test_a_row_that_begins_otherwise_is_told(lms: dict[str, FrozenLM]) -> None:
    prompted_lm = prompted(lms["llama"])
    ids, mask, labels = padded_rows()
    keep, _ = learned_positions(labels)
    with pytest.raises(UserMistake, match=r"behind the tokens \[1\] here, and a row does not begin"):
        prompted_lm(ids, mask, keep)


def test_attention_is_counted_where_the_virtual_tokens_stand(lms: dict[str, FrozenLM]) -> None:
    prompted_lm = prompted(lms["llama"])
    row = rows_behind((1,))[0][0, :10]
    words = prompted_lm.lm.embed(row)
    with torch.no_grad(), attentions_kept(prompted_lm.lm.model):
        embeds = torch.cat([words[:1], prompted_lm.prompt(), words[1:]])[None]
        layers = prompted_lm.lm.model(inputs_embeds=embeds, output_attentions=True).attentions
    wanted = torch.stack([layer[0, :, 7:, 1:7].mean((0, 1)) for layer in layers])
    torch.testing.assert_close(attention_received(prompted_lm, [row]).double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_start_that_says_least_is_tried_at_its_place(lms: dict[str, FrozenLM]) -> None:
    lm = lms["qwen3"]
    texts = [[1, 9, 10, 11], [1, 30, 31]]

    def divergence(virtual: Tensor) -> float:
        total = 0.0
        for text in texts:
            words = lm.embed(torch.tensor(text))
            alone = lm.model(inputs_embeds=words[None]).logits[0, -1].log_softmax(-1)
            behind = torch.cat([words[:1], virtual, words[1:]])[None]
            said = lm.model(inputs_embeds=behind).logits[0, -1].log_softmax(-1)
            total += float((alone.exp() * (alone - said)).sum())
        return total

    with torch.no_grad():
        best = min(little(lm, 6, first=1), key=divergence)
        assert torch.equal(silent_embeddings(lm, 6, texts, leading=1), best)
