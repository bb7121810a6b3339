"""Prompts that learn side by side, against each alone; what they say together, against PEFT and a mean."""

import csv
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml
from methods import METHODS, make_prompt
from peft import PeftModel
from runs import call, train_at
from safetensors.torch import load_file
from test_config import refusals
from test_training import data_of, lm, module_of, moods, trainer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptlit import chat, evaluate, export, inspect, predict, train
from ptlit.build import ASIDE
from ptlit.lm import FrozenLM
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.prompt import SoftPrompt
from ptlit.prompt.init import start_prompt, text_ids
from ptlit.run import open_run

__all__ = ["lm", "moods"]  # fixtures


@pytest.fixture(scope="module")
def three(place: Path) -> Path:
    words = "data.label_words={bad: ' bad', good: ' very good'}"
    return train_at(place, "three", "experiment=prompt_tuning", "ensemble=3", words)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["prompt_tuning", "ptuning_lstm", "prefix_projection"])
def test_each_learns_as_it_would_alone(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    tmp_path: Path,
    method: str,
) -> None:
    """Where gradients are clipped too: they are, by a norm that is never below this."""
    data = data_of(lm, moods)

    def trained(module: SoftPromptModule) -> SoftPromptModule:
        trainer_of(tmp_path, max_steps=8, gradient_clip_val=1e-3).fit(module, data)
        return module

    together = module_of(lm, data, method, members=2)
    alone = [module_of(lm, data, method), module_of(lm, data, method)]
    alone[1].prompted_lm.prompt.load_state_dict(together.prompts[1].state_dict())  # type: ignore[union-attr]
    trained(together)
    for prompt, by_itself in zip(together.prompts, map(trained, alone), strict=True):
        learned = by_itself.prompts[0].state_dict()
        for name, value in prompt.state_dict().items():
            torch.testing.assert_close(value, learned[name], rtol=1e-4, atol=1e-6)
    first, second = (prompt() for prompt in together.prompts)
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_label_has_the_mean_of_its_probabilities(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    calibrate: bool,
) -> None:
    data = data_of(lm, moods, label_words={"bad": " bad", "good": " very good"}, calibrate=calibrate)
    module = module_of(lm, data, "prefix_tuning", members=3).eval()
    words, batch = data.label_words, next(iter(data.eval_dataloader("val")))
    text = batch["attention_mask"] * (batch["labels"] == -100)

    def mean(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        each = [member.label_scores(ids, mask, words.token_ids).double() for member in module.members]
        assert (each[0] - each[1]).abs().max() > 0.1
        return torch.stack(each).exp().mean(0)

    with torch.no_grad():
        expected = mean(batch["input_ids"], text).log()
        if calibrate:
            said = [mean(torch.tensor([row]), torch.ones(1, len(row)).long()) for row in words.content_free]
            expected -= torch.cat([each / each.sum() for each in said]).mean(0).log()
        scores = module.scores(batch)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)


def test_answers_are_the_mean_of_those_in_peft(place: Path, three: Path) -> None:
    call(place, predict.main, "run=three", "input=tweets.csv", "output=three.csv")
    tokenizer, chances = AutoTokenizer.from_pretrained(place / "lm"), []
    rows = rows_of(place / "three.csv")[::24]
    for adapter in ("adapter", "adapter_2", "adapter_3"):
        lm = AutoModelForCausalLM.from_pretrained(place / "lm")  # noqa: F811
        peft = PeftModel.from_pretrained(lm, str(three / adapter)).eval()
        for row in rows:
            for name in (" bad", " very good"):
                text, label = tokenizer(row["text"])["input_ids"], tokenizer(name)["input_ids"]
                with torch.no_grad():
                    logits = peft(input_ids=torch.tensor([[*text, *label]])).logits[0, -len(label) - 1 : -1]
                chances.append(logits.log_softmax(-1)[range(len(label)), label].sum().exp())
    each = torch.stack(chances).view(3, len(rows), 2)
    assert (each[0] - each[1]).abs().max() > 1e-3 * each.max()
    expected = each.mean(0) / each.mean(0).sum(1, keepdim=True)
    for row, (bad, good) in zip(rows, expected.tolist(), strict=True):
        assert [float(row["probability_bad"]), float(row["probability_good"])] == pytest.approx(
            [bad, good], abs=1e-4
        )
    for adapter in ("adapter", "adapter_3"):
        card = (three / adapter / "README.md").read_text()
        assert "one of 3 prompts" in card and "| ensemble | `3` |" in card


def test_it_is_judged_again_as_in_training(place: Path, three: Path) -> None:
    call(place, evaluate.main, "run=three")
    then, again = (
        rows_of(folder / "predictions.csv") for folder in (three / "report", three / "evaluation/test")
    )
    assert [row["prediction"] for row in again] == [row["prediction"] for row in then]
    assert [float(row["probability_bad"]) for row in again] == pytest.approx(
        [float(row["probability_bad"]) for row in then], abs=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_starts_beside_the_first(lm: FrozenLM, method: str) -> None:  # noqa: F811
    """Half as far from its words as these are wide; deep prompts have what the LM makes of such words."""
    text, words = "the task in some words", lm.embed(text_ids(lm, "the task in some words", 30))

    def started(method: str, aside: float) -> torch.Tensor:
        prompt: SoftPrompt = make_prompt(method, lm.shape, num_virtual_tokens=30).eval()
        torch.manual_seed(7)
        start_prompt(prompt, lm, text=text, aside=aside)
        return prompt().detach()

    moved = started("prompt_tuning", ASIDE)
    assert (moved - words).std().item() == pytest.approx(0.5 * words.std().item(), rel=0.1)
    for aside, embeddings in ((0.0, words), (ASIDE, moved)):
        found = started(method, aside)
        if found.ndim == 2:
            torch.testing.assert_close(found, embeddings, rtol=1e-4, atol=1e-5)
            continue
        read = lm.model(inputs_embeds=embeddings[None], use_cache=True).past_key_values
        for layer, (keys, values) in zip(read.layers, found.transpose(2, 3), strict=True):
            torch.testing.assert_close(keys, layer.keys[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(values, layer.values[0], rtol=1e-4, atol=1e-4)


def test_who_needs_one_prompt_says_so(place: Path, three: Path, trained: Path) -> None:
    for main, *words in (
        (export.main, "run=three", "output=three_out"),
        (chat.main, "run=three"),
        (inspect.main, "run=three"),
        (predict.main, "run=[three,run]", "run_column=label", "input=tweets.csv", "output=x.csv"),
    ):
        assert "three is an ensemble of 3 prompts" in said_by(place, main, *words)
    said = said_by(place, export.main, "run=three", "output=three_out")
    assert "as run=three/adapter;" in said and not (place / "three_out").exists()
    call(place, export.main, "run=three/adapter_2", "output=three_out")
    assert (place / "three_out" / "README.md").is_file()
    with pytest.raises(SystemExit, match="distill.run=three is an ensemble of 3: a teacher is one prompt"):
        train_at(place, "pupil", "experiment=prompt_tuning", "distill.run=three")


def test_an_adapter_in_its_run_is_exported_as_its_run_is(place: Path, capfd: pytest.CaptureFixture) -> None:
    """With the LoRA that it was trained with; and not where virtual tokens stood inside the template."""
    train_at(place, "both", "experiment=prompt_tuning", "lora=trained", "optim.lr=1.0")
    words = ("lora=frozen", "lora.path=both/lora", "ensemble=2")
    run = open_run(train_at(place, "worn", "experiment=prompt_tuning", *words), averages=True)
    ids, mask = torch.tensor([[5, 9, 2, 40]]), torch.ones(1, 4, dtype=torch.long)
    keep = mask.bool()
    members = [run.prompted_lm, run.prompted_lm.with_prompt(run.others[0])]
    for adapter, member in zip(("adapter", "adapter_2"), members, strict=True):
        call(place, export.main, f"run=worn/{adapter}", f"output=baked_{adapter}")
        baked = AutoModelForCausalLM.from_pretrained(place / f"baked_{adapter}")
        first = baked.config.vocab_size - member.num_virtual_tokens
        virtual = torch.arange(first, baked.config.vocab_size)[None]
        logits = baked(torch.cat([virtual, ids], dim=1)).logits[0, member.num_virtual_tokens :, :first]
        torch.testing.assert_close(logits, member(ids, mask, keep)[:, :first], rtol=1e-4, atol=1e-4)
    said = said_by(place, export.main, "run=worn/adapter", "output=never", "format=kv")
    assert "worn/adapter has a LoRA on its LM, which format=kv does not take along" in said
    slots = "data.template={soft:4}{text}{soft:2}\\nMood:"
    folder = train_at(place, "slots", "experiment=prompt_tuning", "ensemble=2", slots)
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["template"].endswith("}\nMood:")
    said = said_by(place, export.main, "run=slots/adapter_2", "output=never", "format=peft")
    assert said.startswith("run=slots/adapter_2 was trained with virtual tokens inside its template")
    assert not (place / "never").exists()


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_prompts_start_apart_from_what_says_nothing_too(place: Path, method: str) -> None:
    """A row of padding may say least, and be all zeros."""
    words = (f"experiment={method}", "prompt.init.from=zero", "ensemble=3", "trainer.max_steps=1")
    run = open_run(train_at(place, f"silent_{method}", *words, "optim.lr=1e-9"), averages=True)
    values = [run.prompted_lm.prompt(), *(other() for other in run.others)]
    assert min((a - b).abs().mean() for a, b in combinations(values, 2)) > 1e-3


def said_by(place: Path, main: Callable[[], None], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        call(place, main, *words)
    return str(end.value)


def test_what_cannot_be_averaged(lm: FrozenLM, moods: Path) -> None:  # noqa: F811
    assert refusals("experiment=chat_ptuning", "ensemble=2") == [
        "ensemble=2 averages what prompts say of labels, and dialogues have none: leave it out."
    ]
    assert refusals("lora=trained", "ensemble=2") == [
        "ensemble=2 trains each prompt as if it were alone, and lora=trained changes the LM that they share: "
        "leave out one of them."
    ]
    module = module_of(lm, data_of(lm, moods), members=2)
    with pytest.raises(UserMistake, match="averaged in what they say of labels, and there are none"):
        SoftPromptModule(module.prompted_lm, others=module.prompts[1:])


def test_another_training_goes_on_from_each(place: Path, three: Path, capfd: pytest.CaptureFixture) -> None:
    options = ("experiment=prompt_tuning", "prompt.init.from=three", "optim.lr=1e-9")
    on = train_at(place, "on", *options, "ensemble=2")
    said = capfd.readouterr().out
    assert "goes on from three/adapter (" in said and "goes on from three/adapter_2 (" in said
    for adapter in ("adapter", "adapter_2"):
        before, after = (load_file(run / adapter / "adapter_model.safetensors") for run in (three, on))
        torch.testing.assert_close(after["prompt_embeddings"], before["prompt_embeddings"])
    with pytest.raises(SystemExit, match="ensemble=4 needs as many starts, and prompt.init.from=three is 3"):
        train_at(place, "four", *options, "ensemble=4")


def test_a_run_is_resumed_with_as_many_prompts(place: Path, three: Path) -> None:
    """Or is left as it was."""
    shutil.copytree(three, place / "fewer")
    kept = (place / "fewer" / "config.yaml").read_text()
    for count, what in (
        (2, "others.1.embedding.weight is unknown"),
        (4, "others.2.embedding.weight is missing"),
    ):
        said = said_by(place, train.main, "resume=fewer", f"ensemble={count}", "trainer.max_steps=12")
        assert said.startswith("resume=fewer does not fit") and what in said
        assert (place / "fewer" / "config.yaml").read_text() == kept
    (place / "fewer" / "config.yaml").write_text(kept.replace("ensemble: 3", "ensemble: 2"))
    said = said_by(place, evaluate.main, "run=fewer")
    assert "says ensemble=2 and its checkpoint holds 3 prompts: write ensemble: 3 there." in said
    (place / "fewer" / "config.yaml").write_text(kept.replace("ensemble: 3", "ensemble: some"))
    assert said_by(place, evaluate.main, "run=fewer") == "ensemble=some must be a whole number, 1 or more."


def test_a_run_is_resumed_with_its_prompt(place: Path, trained: Path) -> None:
    shutil.copytree(trained, place / "same")
    kept = (place / "same" / "config.yaml").read_text()
    words = ("resume=same", "prompt.num_virtual_tokens=5", "trainer.max_steps=40")
    said = said_by(place, train.main, *words)
    assert "is (6, " in said and said.endswith("Leave out what changes the prompt, or begin another run.")
    assert (place / "same" / "config.yaml").read_text() == kept


def test_a_run_of_before_is_resumed(place: Path) -> None:
    """It lacks what later versions save; P-tuning in its original form learns on without."""
    words = ("experiment=ptuning_lstm", "prompt.residual=0")
    last = train_at(place, "old", *words, "trainer.max_steps=5") / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    for name in ("moved.origin", "scale.value"):
        del checkpoint["state_dict"][f"prompted_lm.prompt.{name}"]
    torch.save(checkpoint, last)
    call(place, train.main, "resume=old", "trainer.max_steps=7")
    assert torch.load(last, weights_only=True)["global_step"] == 7
