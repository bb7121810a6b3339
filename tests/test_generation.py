"""Whatever way tokens are chosen, they are those of the plain reference: each row alone, without padding and
without any cache, the LM asked anew for every token.
"""

import pytest
import torch
from methods import METHODS, make_prompt
from tiny import WITHOUT_KEYS_AND_VALUES, tiny_lm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, GenerationConfig

from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.products import restore
from ptlit.prompt import EmbeddingPrompt
from ptlit.prompted_lm import PromptedLM

FAMILIES = ("gpt2", "llama", "qwen3", "bloom", "gemma3")
INPUT_METHODS = ("prompt_tuning", "ptuning_lstm", "ptuning_mlp")
NEW = 5
ENDLESS = {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
EVERYTHING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # no word is left out

every_pair = pytest.mark.parametrize(
    ("family", "method"), [(family, method) for family in FAMILIES for method in METHODS]
)
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def lms() -> dict[str, FrozenLM]:
    return {name: strong(name, torch.float64) for name in FAMILIES}


def strong(name: str, dtype: torch.dtype) -> FrozenLM:
    """With weights so large that everything depends on everything, and with a head of its own: one that is
    tied to such embeddings says again what it has read.
    """
    lm = tiny_lm(name, spread=0.3)
    lm.model.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(259, 32))
    return FrozenLM(lm.model.to(dtype), lm.tokenizer)


def prompted(lm: FrozenLM, method: str) -> PromptedLM:
    torch.manual_seed(7)
    return PromptedLM(lm, make_prompt(method, lm.shape).to(lm.dtype)).eval()


def left_padded(lengths: tuple[int, ...] = (9, 4, 7)) -> tuple[Tensor, Tensor]:
    places = torch.arange(max(lengths))
    mask = (places >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 259, mask.shape, generator=generator) * mask, mask


@torch.no_grad()
def next_scores(prompted_lm: PromptedLM, words: list[int]) -> Tensor:
    """Log-probabilities (V) of the word that follows; of the prompt only its output is used."""
    learned, model = prompted_lm.prompt(), prompted_lm.lm.model
    ids = torch.tensor([words])
    if isinstance(prompted_lm.prompt, EmbeddingPrompt):
        read = torch.cat([learned[None], model.get_input_embeddings()(ids)], dim=1)
        logits = model(inputs_embeds=read, use_cache=False).logits
    else:
        layers = [(keys.transpose(0, 1)[None], values.transpose(0, 1)[None]) for keys, values in learned]
        logits = model(input_ids=ids, past_key_values=DynamicCache(layers)).logits
    return logits[0, -1].float().log_softmax(-1)


def greedily(prompted_lm: PromptedLM, ids: Tensor, mask: Tensor, new: int = NEW) -> Tensor:
    rows = []
    for row, seen in zip(ids, mask.bool(), strict=True):
        words = row[seen].tolist()
        for _ in range(new):
            words.append(int(next_scores(prompted_lm, words).argmax()))
        rows.append(words[-new:])
    return torch.cat([ids, torch.tensor(rows)], dim=1)


def best_of_beams(prompted_lm: PromptedLM, ids: Tensor, mask: Tensor, beams: int) -> Tensor:
    rows = []
    for row, seen in zip(ids, mask.bool(), strict=True):
        found = [(0.0, row[seen].tolist())]
        for _ in range(NEW):
            longer = []
            for score, words in found:
                best, following = next_scores(prompted_lm, words).topk(beams)
                steps = zip(best.tolist(), following.tolist(), strict=True)
                longer += [(score + step, [*words, word]) for step, word in steps]
            found = sorted(longer, reverse=True)[:beams]
        rows.append(found[0][1][-NEW:])
    return torch.cat([ids, torch.tensor(rows)], dim=1)


def sampled(prompted_lm: PromptedLM, ids: Tensor, mask: Tensor) -> Tensor:
    rows = [row[seen].tolist() for row, seen in zip(ids, mask.bool(), strict=True)]
    for _ in range(NEW):
        chances = torch.stack([next_scores(prompted_lm, words).exp() for words in rows])
        for words, drawn in zip(rows, torch.multinomial(chances, 1)[:, 0].tolist(), strict=True):
            words.append(drawn)
    return torch.cat([ids, torch.tensor([words[-NEW:] for words in rows])], dim=1)


@every_pair
def test_greedy(lms: dict[str, FrozenLM], family: str, method: str) -> None:
    """In gemma3 the window of 16 is passed, with 6 virtual tokens before 9 words and 5 new ones."""
    prompted_lm = prompted(lms[family], method)
    ids, mask = left_padded()
    expected = greedily(prompted_lm, ids, mask)
    assert torch.equal(prompted_lm.generate(ids, mask, do_sample=False, **ENDLESS), expected)
    unprompted = PromptedLM(lms[family], None).generate(ids, mask, do_sample=False, **ENDLESS)
    assert not torch.equal(unprompted, expected)


@every_pair
def test_beams(lms: dict[str, FrozenLM], family: str, method: str) -> None:
    prompted_lm = prompted(lms[family], method)
    ids, mask = left_padded()
    expected = best_of_beams(prompted_lm, ids, mask, beams=3)
    assert torch.equal(prompted_lm.generate(ids, mask, num_beams=3, **ENDLESS), expected)


@every_pair
@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_other_caches(lms: dict[str, FrozenLM], family: str, method: str, options: dict[str, object]) -> None:
    prompted_lm = prompted(lms[family], method)
    ids, mask = left_padded()
    expected = greedily(prompted_lm, ids, mask)
    assert torch.equal(prompted_lm.generate(ids, mask, **ENDLESS, **options), expected)


@every_method
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_sampling_draws_what_the_reference_draws(
    lms: dict[str, FrozenLM], method: str, options: dict[str, object]
) -> None:
    prompted_lm = prompted(lms["llama"], method)
    ids, mask = left_padded()
    torch.manual_seed(11)
    expected = sampled(prompted_lm, ids, mask)
    torch.manual_seed(11)
    assert torch.equal(prompted_lm.generate(ids, mask, **ENDLESS, **EVERYTHING, **options), expected)


@every_method
@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_beams_on_other_caches(lms: dict[str, FrozenLM], method: str, options: dict[str, object]) -> None:
    prompted_lm = prompted(lms["llama"], method)
    ids, mask = left_padded()
    expected = best_of_beams(prompted_lm, ids, mask, beams=3)
    assert torch.equal(prompted_lm.generate(ids, mask, num_beams=3, **ENDLESS, **options), expected)


@every_pair
@pytest.mark.parametrize("padding", [0, 3])
def test_guessed_ahead(lms: dict[str, FrozenLM], family: str, method: str, padding: int) -> None:
    """By another LM, and by looking up what followed the same words before."""
    prompted_lm = prompted(lms[family], method)
    ids = torch.tensor([[0] * padding + [5, 6, 7, 5, 6, 7, 5, 6]])
    mask = (ids > 0).long()
    expected = greedily(prompted_lm, ids, mask)
    assistant = lms["llama"].model
    told = {"do_sample": False, **ENDLESS}
    assert torch.equal(prompted_lm.generate(ids, mask, assistant_model=assistant, **told), expected)
    assert torch.equal(prompted_lm.generate(ids, mask, prompt_lookup_num_tokens=3, **told), expected)


@every_method
def test_rows_end_where_they_end(lms: dict[str, FrozenLM], method: str) -> None:
    for family in ("llama", "gemma3"):  # gemma3's rows are read by length
        prompted_lm = prompted(lms[family], method)
        ids, mask = left_padded()
        endless = greedily(prompted_lm, ids, mask)
        end = int(endless[1, -3])  # the second row ends early
        written = prompted_lm.generate(
            ids, mask, max_new_tokens=NEW, do_sample=False, eos_token_id=end, pad_token_id=0
        )
        for row, whole in zip(written, endless, strict=True):
            new = whole[-NEW:].tolist()
            kept = new[: new.index(end) + 1] if end in new else new
            assert row[9:].tolist() == (kept + [0] * NEW)[: written.shape[1] - 9]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"do_sample": True}, {"num_beams": 4}], ids=str)
def test_several_answers_a_row(lms: dict[str, FrozenLM], family: str, options: dict[str, object]) -> None:
    prompted_lm = prompted(lms[family], "ptuning_mlp")
    ids, mask = left_padded()
    several = prompted_lm.generate(ids, mask, num_return_sequences=2, **ENDLESS, **options)
    assert several.shape == (6, 9 + NEW)
    assert torch.equal(several[:, :9], ids.repeat_interleave(2, 0))
    if "num_beams" in options:
        assert torch.equal(several[::2], best_of_beams(prompted_lm, ids, mask, beams=4))


def test_settings_may_come_as_a_config_or_with_the_lm(lms: dict[str, FrozenLM]) -> None:
    """Of either, and by the whole length, which counts the text and no virtual token."""
    prompted_lm = prompted(lms["llama"], "prefix_tuning")
    ids, mask = left_padded()
    expected = best_of_beams(prompted_lm, ids, mask, beams=3)
    config = GenerationConfig(num_beams=3, cache_implementation="static", **ENDLESS)
    assert torch.equal(prompted_lm.generate(ids, mask, generation_config=config), expected)
    assert config.cache_implementation == "static"  # the caller's own stays as it is
    lengths = {"max_length": 9 + NEW, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(prompted_lm.generate(ids, mask, num_beams=3, **lengths), expected)
    own = prompted_lm.lm.model.generation_config
    try:
        own.num_beams = 3
        assert torch.equal(prompted_lm.generate(ids, mask, **ENDLESS), expected)
    finally:
        own.num_beams = None


@pytest.mark.parametrize("method", INPUT_METHODS)
@pytest.mark.parametrize("family", WITHOUT_KEYS_AND_VALUES)
def test_lms_that_keep_other_states(family: str, method: str) -> None:
    prompted_lm = prompted(strong(family, torch.float32), method)  # experts are not computed in float64
    ids, mask = left_padded()
    expected = greedily(prompted_lm, ids, mask)
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        written = prompted_lm.generate(ids, mask, do_sample=False, **ENDLESS, **options)
        assert torch.equal(written, expected), options
    beams = best_of_beams(prompted_lm, ids, mask, beams=3)
    assert torch.equal(prompted_lm.generate(ids, mask, num_beams=3, **ENDLESS), beams)
    torch.manual_seed(11)
    drawn = sampled(prompted_lm, ids, mask)
    torch.manual_seed(11)
    assert torch.equal(prompted_lm.generate(ids, mask, **ENDLESS, **EVERYTHING), drawn)
    twice = {"max_length": 9 + NEW, "num_return_sequences": 2, "eos_token_id": None, "do_sample": True}
    assert prompted_lm.generate(ids, mask, **twice).shape == (6, 9 + NEW)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cache_implementation": "quantized"}, "cache_implementation=quantized cannot begin with a prompt"),
        ({"cache_implementation": "static", "use_cache": False}, "exclude each other"),
        ({"prompt_lookup_num_tokens": 3}, "one row at a time, not 3"),
        ({"return_dict_in_generate": True}, "leave return_dict_in_generate out"),
        ({"max_length": 4}, "max_length=4 leaves no room behind 9 tokens of text"),
        ({"num_beans": 4}, "This LM cannot generate so: .*num_beans"),
    ],
)
def test_what_cannot_be_had_is_said(
    lms: dict[str, FrozenLM], options: dict[str, object], sentence: str
) -> None:
    prompted_lm = prompted(lms["llama"], "prompt_tuning")
    ids, mask = left_padded()
    with pytest.raises(UserMistake, match=sentence):
        prompted_lm.generate(ids, mask, **options)
    with pytest.raises(UserMistake, match="padded on the left"):
        prompted_lm.generate(ids.flip(1), mask.flip(1))
    for other in ({"use_cache": False}, {"cache_implementation": "static"}):
        with pytest.raises(UserMistake, match="takes back tokens from its cache"):
            prompted_lm.generate(ids[:1], mask[:1], prompt_lookup_num_tokens=3, **other)


@pytest.mark.parametrize("method", INPUT_METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_virtual_tokens_among_the_words(family: str, method: str) -> None:
    """Two words stand before the places (ids below 0), in rows that are padded on the left."""
    lm = strong(family, torch.float32)  # in float64 Bloom's own attention has no finite value for padding
    prompted_lm = PromptedLM(lm, prompted(lm, method).prompt, slots=6).eval()
    words, mask = left_padded((9, 5))
    places = -1 - torch.arange(6).expand(2, -1)
    rows, expected = [], []
    for row, seen in zip(words, mask.bool(), strict=True):
        before, after = row[seen][:2], row[seen][2:]
        rows.append(torch.cat([row[~seen], before, places[0], after]))
        for _ in range(NEW):
            embeddings = torch.cat([lm.embed(before), prompted_lm.prompt(), lm.embed(after)])
            best = lm.model(inputs_embeds=embeddings[None], use_cache=False).logits[0, -1].argmax()
            after = torch.cat([after, best[None]])
        expected.append(torch.cat([rows[-1], after[-NEW:]]))
    ids, mask = torch.stack(rows), torch.nn.functional.pad(mask, (0, 6), value=1)
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        written = prompted_lm.generate(ids, mask, do_sample=False, **ENDLESS, **options)
        assert torch.equal(written, torch.stack(expected)), options
    penalised = {"repetition_penalty": 1.5, "num_beams": 2, "num_return_sequences": 2}
    assert prompted_lm.generate(ids, mask, **ENDLESS, **penalised).shape == (4, 15 + NEW)
    with pytest.raises(UserMistake, match="Assisted generation reads words alone"):
        prompted_lm.generate(ids[:1], mask[:1], prompt_lookup_num_tokens=2)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has of all that are made, views of others too."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        outcome = func(*args, **(kwargs or {}))
        if isinstance(outcome, Tensor):
            self.found = max(self.found, outcome.numel())
        return outcome


def test_the_head_is_not_repeated_for_each_row() -> None:
    lm = tiny_lm("llama")
    restore(lm.model)
    prompted_lm = PromptedLM(lm, make_prompt("prompt_tuning", lm.shape)).eval()
    ids = torch.randint(5, 200, (64, 6))
    with Largest() as largest:
        prompted_lm.generate(ids, torch.ones_like(ids), **ENDLESS)
    assert largest.found < 64 * lm.model.get_output_embeddings().weight.numel()
