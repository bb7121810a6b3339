"""The LM and the tweets that a first run uses, for real: PEFT agrees, and a few steps learn."""

import functools
from pathlib import Path

import pytest
import torch
import yaml
from methods import METHODS, make_prompt
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ptlit.build import ASIDE
from ptlit.config import conf_folder
from ptlit.data import ChatData, ClassificationData
from ptlit.lm import FrozenLM, load_lm
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.module import SoftPromptModule
from ptlit.peft_format import write_adapter
from ptlit.prompt import PrefixTuning, PromptTuning, SoftPrompt
from ptlit.prompt.init import start_prompt
from ptlit.prompted_lm import PromptedLM

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return load_lm("bundled/SmolLM2-135M-Instruct", dtype="float32")


@pytest.fixture(scope="module")
def data(lm: FrozenLM) -> ClassificationData:
    data = ClassificationData(tokenizer=lm.tokenizer, path="bundled_tweets", subset="airline", test_limit=16)
    data.setup()
    return data


def test_it_is_loaded_once(lm: FrozenLM) -> None:
    assert load_lm("bundled/SmolLM2-135M-Instruct", dtype="float32") is lm


def test_it_can_be_talked_to(lm: FrozenLM) -> None:
    chat = [{"role": "user", "content": "What is the capital of France? One word."}]
    ids = lm.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    reply = PromptedLM(lm, None).generate(ids["input_ids"], ids["attention_mask"], max_new_tokens=8)
    assert "Paris" in lm.tokenizer.decode(reply[0, ids["input_ids"].shape[1] :])


@pytest.mark.parametrize("kind", [PromptTuning, PrefixTuning])
def test_peft_gives_the_same_loss(
    lm: FrozenLM, data: ClassificationData, kind: type[SoftPrompt], tmp_path: Path
) -> None:
    prompt = kind(lm.shape, 20)
    start_prompt(prompt, lm, text=data.instruction)
    prompted_lm = PromptedLM(lm, prompt)
    batch = next(iter(data.train_dataloader()))
    keep, targets = learned_positions(batch["labels"])
    with torch.no_grad():
        ours = learned_token_loss(prompted_lm(batch["input_ids"], batch["attention_mask"], keep), targets)
    write_adapter(tmp_path, prompt, lm.shape, lm.name)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lm.name, dtype="float32"), tmp_path)
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        theirs = peft.eval()(**inputs).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def dialogues(lm: FrozenLM) -> ChatData:
    instruction = yaml.safe_load((conf_folder() / "data" / "chat.yaml").read_text())["instruction"]
    data = ChatData(tokenizer=lm.tokenizer, path="bundled_dialogues", instruction=instruction, limit=64)
    data.setup()
    return data


@pytest.mark.parametrize("kind", ["data", "dialogues"])
def test_no_method_begins_worse_than_the_untrained_lm(
    lm: FrozenLM, kind: str, request: pytest.FixtureRequest
) -> None:
    """By the start that its file names; a tenth is what the first step's warning allows."""
    data = request.getfixturevalue(kind)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        untrained = lm.model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        for method in METHODS:
            prompt = make_prompt(method, lm.shape, num_virtual_tokens=20)
            init = yaml.safe_load((conf_folder() / "prompt" / f"{method}.yaml").read_text())["init"]
            start_prompt(prompt, lm, from_=init["from"], text=init["text"] or data.instruction)
            keep, targets = learned_positions(batch["labels"])
            logits = PromptedLM(lm, prompt)(batch["input_ids"], batch["attention_mask"], keep)
            assert learned_token_loss(logits, targets) < 1.1 * untrained, method


@pytest.mark.parametrize("kind", [PromptTuning, PrefixTuning])
def test_a_start_beside_the_instruction_is_a_good_one(
    lm: FrozenLM, data: ClassificationData, kind: type[SoftPrompt]
) -> None:
    """For the other prompts of an ensemble: nearer to the labels than the LM without any."""
    batch = next(iter(data.train_dataloader()))
    keep, targets = learned_positions(batch["labels"])

    def loss(prompt: SoftPrompt | None) -> float:
        with torch.no_grad():
            logits = PromptedLM(lm, prompt)(batch["input_ids"], batch["attention_mask"], keep)
        return learned_token_loss(logits, targets).item()

    for seed in range(3):
        torch.manual_seed(seed)
        prompt = kind(lm.shape, 20)
        start_prompt(prompt, lm, text=data.instruction, aside=ASIDE)
        assert loss(prompt) < 0.9 * loss(None)


def test_a_few_steps_learn_real_tweets(lm: FrozenLM, data: ClassificationData) -> None:
    torch.manual_seed(0)
    prompt = PrefixTuning(lm.shape, 20)
    start_prompt(prompt, lm, text=data.instruction)
    make = functools.partial(torch.optim.AdamW, lr=5e-3)
    module = SoftPromptModule(PromptedLM(lm, prompt), optimizer=make, label_words=data.label_words)
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for batch, _ in zip(data.train_dataloader(), range(12), strict=False):
        keep, targets = learned_positions(batch["labels"])
        logits = module.prompted_lm(batch["input_ids"], batch["attention_mask"], keep)
        loss = learned_token_loss(logits, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-4:]) < sum(losses[:4]) / 2
