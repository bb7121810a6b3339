"""A baked checkpoint, opened by programs that know nothing of soft prompts, computes what ptlit computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import make_prompt
from tiny import byte_tokenizer, padded_rows, tiny_lm
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, pipeline

from ptlit.bake import Ingredient, bake
from ptlit.data.example import encode
from ptlit.data.templates import Template
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.products import plainly
from ptlit.prompt import EmbeddingPrompt
from ptlit.prompted_lm import PromptedLM

TINY = ("gpt2", "bloom", "llama", "qwen3", "gemma3", "phi3", "opt", "mamba")
CHATML = (
    "{% for message in messages %}{{ '<bos>' if loop.first }}{{ message['role'] + ': ' }}"
    "{{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
INPUT_KIND = ("prompt_tuning", "ptuning_mlp", "ptuning_lstm")
DEEP_KIND = ("prefix_tuning", "prefix_projection", "ptuning_v2")
TEXT = "Landed early, thank you!"


def lm_of(name: str, adds_bos: bool = True, chat: str | None = CHATML, **tiny: Any) -> FrozenLM:
    lm = tiny_lm(name, spread=0.3, **tiny)
    lm.tokenizer = byte_tokenizer(adds_bos)
    lm.tokenizer.chat_template = chat
    return lm


def prompt_for(
    lm: FrozenLM, method: str = "prompt_tuning", seed: int = 3, **changes: object
) -> EmbeddingPrompt:
    torch.manual_seed(seed)
    prompt = make_prompt(method, lm.shape, **changes).eval()
    assert isinstance(prompt, EmbeddingPrompt)
    return prompt


def opened(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def virtual_then(lm: FrozenLM, prompt: EmbeddingPrompt, ids: Tensor) -> Tensor:
    """Logits at the places of `ids` of the plain LM, given the embeddings of prompt and text."""
    with torch.no_grad():
        embeds = torch.cat([prompt()[None].expand(len(ids), -1, -1), lm.embed(ids)], dim=1)
        return lm.model(inputs_embeds=embeds, use_cache=False).logits[:, prompt.num_virtual_tokens :]


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_logits_are_equal_to_the_last_bit(name: str, own_head: bool, tmp_path: Path) -> None:
    lm = lm_of(name)
    prompt = prompt_for(lm)
    if name == "gemma3":  # its embeddings are products with a scale, and not every number is such a product
        prompt.start_at(torch.randn(6, 32) * lm.model.model.embed_tokens.embed_scale)
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    baked = bake(lm, {"": Ingredient(prompt)}, tmp_path, own_head=own_head)
    assert baked.difference == 0.0
    model, tokenizer = opened(tmp_path)
    with torch.no_grad():
        row = tokenizer(TEXT, return_tensors="pt")
        theirs = model(**row, use_cache=False).logits[:, 6:, :259]
        ids = lm.tokenizer(TEXT, return_tensors="pt")["input_ids"]
        with plainly(lm.model):
            assert torch.equal(theirs, virtual_then(lm, prompt, ids))
        mask = torch.ones_like(ids)
        ours = PromptedLM(lm, prompt).forward_concatenated(ids, mask, mask.bool())
    torch.testing.assert_close(theirs[0], ours, rtol=1e-5, atol=1e-5)
    after = lm.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert len(lm.tokenizer) == 259


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_gemmas_look_up_cannot_give_is_given_as_nearly_as_can_be(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    lm = lm_of("gemma3")
    lm.model.to(dtype)
    prompt = prompt_for(lm)
    baked = bake(lm, {"": Ingredient(prompt)}, tmp_path)
    model, tokenizer = opened(tmp_path)
    looked_up = model.get_input_embeddings()(torch.tensor(baked.prompts[0].ids))
    torch.testing.assert_close(looked_up, prompt().to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert 0 < baked.difference < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", INPUT_KIND)
def test_it_writes_what_ptlit_writes(method: str, tmp_path: Path) -> None:
    lm = lm_of("llama")
    prompt = prompt_for(
        lm, method, dropout=0.3
    ).train()  # as training leaves it; dropout is no part of the prompt
    bake(lm, {"": Ingredient(prompt)}, tmp_path)
    assert prompt.training
    greedy: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    row = lm.tokenizer(TEXT, return_tensors="pt")
    ours = PromptedLM(lm, prompt.eval()).generate(row["input_ids"], row["attention_mask"], **greedy)
    ours_text = lm.tokenizer.decode(ours[0], skip_special_tokens=True)
    model, tokenizer = opened(tmp_path)
    theirs = model.generate(**tokenizer(TEXT, return_tensors="pt"), **greedy)
    assert tokenizer.decode(theirs[0], skip_special_tokens=True) == ours_text
    writer = pipeline("text-generation", model=str(tmp_path))
    assert writer(TEXT, **greedy)[0]["generated_text"] == ours_text
    together = writer([TEXT, "No."], batch_size=2, **greedy)  # left-padded
    assert together[0][0]["generated_text"] == ours_text


def test_a_chat_is_read_behind_the_prompt(tmp_path: Path) -> None:
    lm = lm_of("llama")
    prompt = prompt_for(lm)
    baked = bake(lm, {"": Ingredient(prompt)}, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": role, "content": f"{role} speaks"} for role in ("system", "user", "assistant", "user")]
    for prompted in (True, False):
        old = lm.tokenizer.apply_chat_template(chat, add_generation_prompt=prompted)["input_ids"]
        new = tokenizer.apply_chat_template(chat, add_generation_prompt=prompted)["input_ids"]
        assert new == [*baked.prompts[0].ids, *old]


def test_a_chat_template_without_bos_is_given_the_one_that_ptlit_adds(tmp_path: Path) -> None:
    lm = lm_of("llama", chat="{% for message in messages %}{{ message['content'] }}{% endfor %}")
    (prompt,) = bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path).prompts
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a"}])["input_ids"]
    assert ids == [*prompt.ids, 1, *lm.tokenizer("a", add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("chat", [None, "{{ raise_exception('a system message comes first') }}"])
def test_without_a_chat_template_that_works_there_is_none(chat: str | None, tmp_path: Path) -> None:
    lm = lm_of("llama", chat=chat)
    (prompt,) = bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path).prompts
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template is None and not prompt.in_chat
    assert tokenizer("a")["input_ids"] == [*prompt.ids, *lm.tokenizer("a")["input_ids"]]


def test_several_prompts_in_one_checkpoint(tmp_path: Path) -> None:
    lm = lm_of("llama")
    labels = Template("{topic} - Tweet: {text}\nSentiment: ")
    prompts = {"chat": prompt_for(lm, seed=1), "mood-2": prompt_for(lm, seed=2, num_virtual_tokens=4)}
    baked = bake(
        lm, {"chat": Ingredient(prompts["chat"]), "mood-2": Ingredient(prompts["mood-2"], labels)}, tmp_path
    )
    assert baked.difference == 0.0
    model, tokenizer = opened(tmp_path)
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    for said in json.loads((tmp_path / "ptlit_prompts.json").read_text()):
        prompt = prompts[said["name"]]
        ids = lm.tokenizer(TEXT, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(**tokenizer(said["prefix"] + TEXT, return_tensors="pt"), use_cache=False).logits
        places = prompt.num_virtual_tokens
        assert torch.equal(logits[:, places:, :259], virtual_then(lm, prompt, ids))

    message = [{"role": "user", "content": f" {TEXT} "}]
    first = tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    old = lm.tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    assert first == [*baked.prompts[0].ids, *old]
    assert (
        tokenizer.apply_chat_template(message, add_generation_prompt=True, prompt="chat")["input_ids"]
        == first
    )
    second = tokenizer.apply_chat_template(message, prompt="mood-2", topic="air")["input_ids"]
    assert second == [
        *baked.prompts[1].ids,
        *encode(labels.example(TEXT, {"topic": "air"}), lm.tokenizer, 99)["input_ids"],
    ]
    for wrong, complaint in (
        ({"prompt": "mod"}, "choose from chat, mood-2"),
        ({"prompt": "mood-2"}, "needs topic"),
    ):
        with pytest.raises(Exception, match=complaint):
            tokenizer.apply_chat_template(message, **wrong)
    with pytest.raises(Exception, match="one user message"):
        tokenizer.apply_chat_template(message * 2, prompt="mood-2", topic="air")


def test_llama_cpp_is_given_the_tokenizer_that_it_knows(tmp_path: Path) -> None:
    lm = lm_of("llama")
    (said,) = bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path, for_llama_cpp=True).prompts
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXT)["input_ids"] == lm.tokenizer(TEXT)["input_ids"]
    ids = tokenizer(said.prefix + TEXT, add_special_tokens=False)["input_ids"]
    assert ids == [*said.ids, *lm.tokenizer(TEXT)["input_ids"]]
    assert not said.in_every_text and said.in_chat


def test_a_padded_vocabulary_has_room(tmp_path: Path) -> None:
    lm = lm_of("qwen3", vocabulary=264)  # of which the tokenizer uses 259; six more are one row too many
    prompt = prompt_for(lm, num_virtual_tokens=5)
    bake(lm, {"": Ingredient(prompt)}, tmp_path / "fits")
    assert opened(tmp_path / "fits")[0].config.vocab_size == 264
    bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path / "grows")
    assert opened(tmp_path / "grows")[0].config.vocab_size == 265


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_a_head_of_its_own_never_prefers_a_virtual_token(name: str, tmp_path: Path) -> None:
    lm = lm_of(name)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.sub_(0.5 * lm.model.get_output_embeddings().weight.mean(0))
    bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path)
    model, tokenizer = opened(tmp_path)
    ids, mask, _ = padded_rows((20, 20))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    assert int(logits.argmax(-1).max()) < 259
    assert model.generation_config.suppress_tokens == [259, 260, 261, 262, 263, 264]


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
@pytest.mark.parametrize("own_head", [False, True])
def test_virtual_tokens_are_not_written(name: str, own_head: bool, tmp_path: Path) -> None:
    lm = lm_of(name)  # head and embeddings are one: a large virtual token would always win
    prompt = prompt_for(lm)
    prompt.start_at(1000 * prompt())
    bake(lm, {"": Ingredient(prompt)}, tmp_path, own_head=own_head)
    model, tokenizer = opened(tmp_path)
    assert model.config.tie_word_embeddings != own_head
    if own_head:  # needs nobody who reads generation_config.json
        model.generation_config.suppress_tokens = None
    row = tokenizer(TEXT, return_tensors="pt")
    written = model.generate(**row, do_sample=True, max_new_tokens=30)[0, row["input_ids"].shape[1] :]
    assert int(written.max()) < 259


def test_tokenizers_that_begin_a_text_with_a_space(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {
        token: i
        for i, token in enumerate(("<pad>", "<bos>", "<eos>", "<unk>", "▁", *map(chr, range(32, 127))))
    }
    inner = Tokenizer(models.BPE(vocab=words | {"\n": len(words)}, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    lm = lm_of("llama")
    lm.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    labels = Template("Tweet: {text}")
    (prompt,) = bake(lm, {"": Ingredient(prompt_for(lm), labels)}, tmp_path).prompts
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    read = encode(labels.example(TEXT), lm.tokenizer, 99)["input_ids"]
    assert tokenizer(f"Tweet: {TEXT}")["input_ids"] == [*prompt.ids, *read]
    assert tokenizer.apply_chat_template([{"role": "user", "content": TEXT}])["input_ids"] == [
        *prompt.ids,
        *read,
    ]


@pytest.mark.parametrize("method", DEEP_KIND)
def test_keys_and_values_are_no_words(method: str, tmp_path: Path) -> None:
    lm = lm_of("llama")
    with pytest.raises(UserMistake, match="use format=kv"):
        bake(lm, {"": Ingredient(make_prompt(method, lm.shape))}, tmp_path)


def test_baking_again_needs_a_name(tmp_path: Path) -> None:
    lm = lm_of("llama")
    bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path / "one")
    again = FrozenLM(*opened(tmp_path / "one"))
    with pytest.raises(UserMistake, match="has a token <ptlit_0> already"):
        bake(again, {"": Ingredient(prompt_for(lm))}, tmp_path / "two")
    second = prompt_for(again, seed=5)
    assert bake(again, {"b": Ingredient(second)}, tmp_path / "three").difference == 0.0


def test_an_lm_or_tokenizer_that_cannot_be_saved_so_is_refused(tmp_path: Path) -> None:
    lm = lm_of("llama")
    lm.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(UserMistake, match="This LM is quantised"):
        bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path)
    lm = lm_of("llama")
    lm.tokenizer = ByT5Tokenizer()
    with pytest.raises(UserMistake, match="needs a fast tokenizer"):
        bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path)


def test_an_lm_that_does_more_with_ids_than_look_them_up_is_refused(tmp_path: Path) -> None:
    lm = lm_of("gpt2")
    lm.model.register_forward_hook(
        lambda model, args, said, out: setattr(
            out, "logits", out.logits + (said.get("input_ids") is not None)
        ),
        with_kwargs=True,
    )
    with pytest.raises(UserMistake, match="does not answer as the prompted one"):
        bake(lm, {"": Ingredient(prompt_for(lm))}, tmp_path)
