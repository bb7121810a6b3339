"""What a prompt has become, against prompts of which it is known, and against PEFT's own attention."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from methods import make_prompt
from peft import PeftModel
from runs import call, train_at
from tiny import ARCHITECTURES, tiny_lm
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptlit.findings import attention_received
from ptlit.inspect import inspect, main
from ptlit.mistake import UserMistake
from ptlit.prompted_lm import PromptedLM
from ptlit.run import open_run

INSTRUCTION = "Choose the label of the text: bad, good."  # what is said where nothing is given


@pytest.fixture(scope="module")
def known(place: Path) -> Path:
    """A run whose virtual tokens are made to be x, twice y, 1.5 times the start's third, and its others."""
    as_they_are = ["prompt.lm_scale=false", "trainer.max_steps=1"]
    folder = train_at(place, "known", "experiment=prompt_tuning", *as_they_are)
    lm = AutoModelForCausalLM.from_pretrained(place / "lm")
    tokenizer = AutoTokenizer.from_pretrained(place / "lm")

    def words(text: str) -> torch.Tensor:
        return lm.get_input_embeddings()(torch.tensor(tokenizer(text)["input_ids"])).detach()

    vectors = words(INSTRUCTION)[:6].clone()
    vectors[0], vectors[1] = words("x")[0], 2 * words("y")[0]
    vectors[2] *= 1.5
    path = folder / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["prompted_lm.prompt.embedding.weight"] = vectors
    torch.save(checkpoint, path)
    return folder


def test_words_lengths_and_ways_are_those_that_were_put_there(place: Path, known: Path) -> None:
    call(place, main, "run=known", "words=2")
    with (known / "inspect.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert "".join(line["started as"] for line in lines) == INSTRUCTION[:6]
    assert [line["nearest words"].split(",")[0] for line in lines] == [
        f"{word} 1.00" for word in ("x", "y", *INSTRUCTION[2:6])
    ]
    assert [line["moved"] for line in lines[2:]] == ["0.50", "0.00", "0.00", "0.00"]
    embeddings = AutoModelForCausalLM.from_pretrained(place / "lm").get_input_embeddings().weight.detach()
    usual = embeddings.norm(dim=-1).median()
    twice_y = 2 * embeddings[AutoTokenizer.from_pretrained(place / "lm")("y")["input_ids"][0]].norm() / usual
    assert float(lines[1]["length"]) == pytest.approx(float(twice_y), abs=0.006)
    assert (known / "inspect.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("run", ["trained", "trained_deep"])
def test_attention_is_that_of_peft(
    place: Path, run: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(run)
    monkeypatch.chdir(place)
    found = inspect(str(folder), text="flight 12 was late")
    lm = AutoModelForCausalLM.from_pretrained(place / "lm", attn_implementation="eager")
    ids = torch.tensor([AutoTokenizer.from_pretrained(place / "lm")("flight 12 was late")["input_ids"]])
    peft = PeftModel.from_pretrained(lm, str(folder / "adapter")).eval()
    with torch.no_grad():
        attentions = peft(input_ids=ids, output_attentions=True).attentions
    expected = torch.stack([layer[0, :, -ids.shape[1] :, :6].mean((0, 1)) for layer in attentions])  # (L, P)
    torch.testing.assert_close(found.attention, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_attention_is_that_of_the_plain_model(family: str) -> None:
    """The virtual tokens put before the text as embeddings, and no cache."""
    lm = tiny_lm(family, spread=0.2)
    config = lm.model.config.get_text_config()
    prompted = PromptedLM(lm, make_prompt("prompt_tuning", lm.shape)).eval()
    rows = [torch.arange(10, 30), torch.arange(40, 49)]
    found, usual, expected = attention_received(prompted, rows), config._attn_implementation, []
    config._attn_implementation = "eager"
    with torch.no_grad():
        for ids in rows:
            embeddings = torch.cat([prompted.prompt(), lm.embed(ids)])[None]
            seen = lm.model(inputs_embeds=embeddings, output_attentions=True).attentions
            expected.append(torch.stack([layer[0, :, 6:, :6].mean((0, 1)) for layer in seen]))
    torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-5, rtol=1e-4)
    assert usual != "eager" or family == "bloom"


def test_an_lm_that_does_not_attend_is_told_apart() -> None:
    lm = tiny_lm("mamba")
    with pytest.raises(UserMistake, match="Not every layer of this LM attends"):
        attention_received(PromptedLM(lm, make_prompt("prompt_tuning", lm.shape)), [torch.arange(9)])


def test_a_deep_prompt_is_shown_by_layer(
    place: Path, trained_deep: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its start was the text's own keys and values, so it has not moved far and is about as long."""
    call(place, main, "run=deep", "rows=3", "checkpoint=last")
    with (trained_deep / "inspect-last.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["layer"] for line in lines] == ["1", "2"]
    for line in lines:
        assert 0 < float(line["keys moved"]) < 0.5 and 0 < float(line["values moved"]) < 0.5
        assert 0.5 < float(line["key length"]) < 2
    said = capsys.readouterr().out
    assert f"It started from '{INSTRUCTION}'." in said and "3 rows of the test split" in said
    assert "picture deep/inspect-last.png" in said


def test_a_start_by_chance_is_said_to_be_lost(place: Path, capsys: pytest.CaptureFixture) -> None:
    train_at(place, "noisy", "experiment=ptuning_mlp", "prompt.init.from=noise", "trainer.max_steps=1")
    call(place, main, "run=noisy", "text=Landed early, thank you!")
    said = capsys.readouterr().out
    assert "It started from noise, which cannot be rebuilt" in said and "moved" in said
    with (place / "noisy" / "inspect.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["token", "nearest words", "length", "attention"]


def test_the_lm_attends_as_before_afterwards(place: Path, trained: Path) -> None:
    inspect(str(trained), text="flight 12")
    assert open_run(trained).lm.model.config._attn_implementation == "sdpa"


def test_mistakes_are_one_sentence(place: Path, trained: Path, tmp_path: Path) -> None:
    def says(sentence: str, *words: str) -> None:
        with pytest.raises(SystemExit, match=sentence) as end:
            call(place, main, *words)
        assert len(str(end.value).splitlines()) == 1

    says("run=nowhere: there is no such folder", "run=nowhere")
    says("words=0 must be at least 1", "run=run", "words=0")
    says("text is empty", "run=run", "text= ")
    says("rows=many must be a whole number", "run=run", "rows=many")
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(place / "tweets.csv"), "gone.csv"))
    says("gone.csv.* Or give a text of your own: text=", f"run={copy}")
