"""Prompts go both ways: PEFT opens ours, we open PEFT's, and both answer the same."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from methods import METHODS, make_prompt, method_options
from peft import PeftModel, get_peft_model
from runs import train_at
from safetensors.torch import load_file, save_file
from test_config import complaints
from test_export import said_by_readme
from tiny import padded_rows, tiny_lm
from torch import Tensor

from ptlit.mistake import UserMistake
from ptlit.peft_format import read_adapter, write_adapter
from ptlit.prompt import KeyValuePrompt
from ptlit.prompted_lm import PromptedLM
from ptlit.run import open_run

PEFT_METHODS: dict[str, Callable[..., Any]] = {
    "prompt_tuning": lambda **said: peft.PromptTuningConfig(**said),
    "ptuning_mlp": lambda **said: peft.PromptEncoderConfig(**said, encoder_hidden_size=16),
    "ptuning_lstm": lambda **said: peft.PromptEncoderConfig(
        **said, encoder_hidden_size=16, encoder_reparameterization_type="LSTM"
    ),
    "prefix_tuning": lambda **said: peft.PrefixTuningConfig(**said),
    "prefix_projection": lambda **said: peft.PrefixTuningConfig(
        **said, prefix_projection=True, encoder_hidden_size=16
    ),
}
DEEP = [method for method in METHODS if issubclass(method_options(method)[0], KeyValuePrompt)]
INPUT = [method for method in METHODS if method not in DEEP]


def their_logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]


def our_logits(prompted_lm: PromptedLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        mask = torch.ones_like(ids)
        return prompted_lm(ids, mask, mask.bool()).view(*ids.shape, -1)


@pytest.fixture(scope="module")
def trained_by_peft(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor, Tensor]]:
    """For each method a folder that PEFT wrote, and the logits and greedy ids that PEFT gives with it."""
    found = {}
    ids, mask, labels = padded_rows((11, 11))
    for method, config in PEFT_METHODS.items():
        folder = tmp_path_factory.mktemp(method)
        torch.manual_seed(5)
        model = get_peft_model(
            tiny_lm("llama", spread=0.3).model, config(task_type="CAUSAL_LM", num_virtual_tokens=6)
        )
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
        model.eval()
        model.save_pretrained(folder)
        greedy = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        found[method] = (folder, their_logits(model, ids), greedy)
    return found


@pytest.mark.parametrize("trained", PEFT_METHODS)
def test_what_peft_trained_answers_the_same_here(
    trained: str, trained_by_peft: dict[str, tuple[Path, Tensor, Tensor]]
) -> None:
    folder, logits, greedy = trained_by_peft[trained]
    lm = tiny_lm("llama", spread=0.3)
    ids, mask, _ = padded_rows((11, 11))
    for method in DEEP if trained.startswith("prefix") else INPUT:
        prompt = make_prompt(method, lm.shape)
        said = read_adapter(folder, prompt)
        assert said.startswith("The prompt starts from the output of ")
        assert ("encoder behind it was not saved" in said) == trained.startswith("ptuning")
        prompted_lm = PromptedLM(lm, prompt).eval()
        torch.testing.assert_close(our_logits(prompted_lm, ids), logits, rtol=1e-4, atol=1e-4)
        ours = prompted_lm.generate(ids, mask, max_new_tokens=6, do_sample=False)
        assert torch.equal(ours, greedy)
        prompted_lm.train()
        prompted_lm(ids, mask, mask.bool()).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in prompt.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_ours_is_restored_tensor_by_tensor_and_writes_the_same_in_peft(method: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama", spread=0.3)
    torch.manual_seed(7)
    prompt = make_prompt(method, lm.shape).train()  # saved in the midst of training, dropout and all
    write_adapter(tmp_path, prompt, lm.shape, base_model="tiny")
    other = make_prompt(method, lm.shape)
    assert "with all that was learned" in read_adapter(tmp_path, other)
    assert all(torch.equal(each, prompt.state_dict()[name]) for name, each in other.state_dict().items())
    ids, mask, _ = padded_rows((9, 9))
    model = PeftModel.from_pretrained(tiny_lm("llama", spread=0.3).model, str(tmp_path)).eval()
    theirs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    ours = PromptedLM(lm, prompt).eval().generate(ids, mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("saved", "asked"), [("ptuning_lstm", "ptuning_mlp"), ("ptuning_v2", "prefix_projection")]
)
def test_another_method_starts_from_the_output(saved: str, asked: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    prompt = make_prompt(saved, lm.shape).eval()
    write_adapter(tmp_path, prompt, lm.shape, base_model="tiny")
    other = make_prompt(asked, lm.shape)
    assert f"Its own tensors ({type(prompt).__name__}) are left behind." in read_adapter(tmp_path, other)
    torch.testing.assert_close(other.eval()(), prompt())


@pytest.mark.parametrize("method", ["ptuning_mlp", "ptuning_lstm"])
def test_ours_with_another_residual_goes_on_from_the_same_output(method: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    prompt = make_prompt(method, lm.shape, residual=0.0).eval()
    write_adapter(tmp_path, prompt, lm.shape, base_model="tiny")
    other = make_prompt(method, lm.shape, residual=20.0)
    assert "with all that was learned" in read_adapter(tmp_path, other)
    torch.testing.assert_close(other.eval()(), prompt(), rtol=0, atol=1e-5)
    assert torch.equal(other.embedding.weight, prompt.embedding.weight)


@pytest.mark.parametrize("residual", [0.0, 20.0])
def test_a_prompt_saved_before_there_was_a_residual_is_read(residual: float, tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    prompt = make_prompt("ptuning_mlp", lm.shape, residual=0.0).eval()
    folder = folder_with(tmp_path, prompt)
    rewrite(folder, lambda tensors: tensors.pop("ptlit.moved.origin"))
    other = make_prompt("ptuning_mlp", lm.shape, residual=residual).eval()
    assert "with all that was learned" in read_adapter(folder, other)
    assert torch.equal(other(), prompt())
    saved = {name: each for name, each in prompt.state_dict().items() if name != "moved.origin"}
    again = make_prompt("ptuning_mlp", lm.shape, residual=0.0).eval()  # as the config of such a run has it
    again.load_state_dict(saved)
    assert torch.equal(again(), prompt())


def test_it_goes_on_from_a_run_and_from_peft(
    place: Path, trained: Path, trained_by_peft: dict[str, tuple[Path, Tensor, Tensor]], capsys: Any
) -> None:
    """Before the first step the validation scores are those that the other run ended with."""
    begin = ["trainer.max_steps=1", "optim.lr=1e-12", "prompt.hidden_size=128"]
    again = train_at(place, "again", "experiment=ptuning_lstm", f"prompt.init.from={trained}/adapter", *begin)
    assert (
        f"The prompt goes on from {trained}/adapter (P_TUNING, trained on {place}/lm)"
        in capsys.readouterr().out
    )
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (trained, again))
    assert second["test/loss"] == pytest.approx(first["test/loss"], abs=1e-5)
    shutil.copytree(trained_by_peft["ptuning_mlp"][0], place / "theirs")
    theirs = train_at(
        place, "from_peft", "experiment=prompt_tuning", "prompt.init.from=theirs", "trainer.max_steps=1"
    )
    shutil.rmtree(place / "theirs")
    assert open_run(theirs).prompted_lm.num_virtual_tokens == 6  # where it started is past


def folder_with(tmp_path: Path, prompt: Any = None, **config: object) -> Path:
    lm = tiny_lm("llama")
    write_adapter(tmp_path, prompt or make_prompt("ptuning_mlp", lm.shape), lm.shape, base_model="tiny")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object], method: str = "PtuningMlp") -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(
        tensors, folder / "adapter_model.safetensors", metadata={"format": "pt", "ptlit_method": method}
    )


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "is no adapter, for it has no adapter_config.json."),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors."),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "a pickle, adapter_model.bin, is not read",
        ),
        (lambda f: (f / "adapter_config.json").write_text("{"), "is broken, or no adapter's config."),
        (
            lambda f: os.truncate(f / "adapter_model.safetensors", 500),
            "adapter_model.safetensors is broken: ",
        ),
        (
            lambda f: rewrite(f, lambda t: t.pop("prompt_embeddings")),
            "has no tensor prompt_embeddings: it holds ",
        ),
        (
            lambda f: rewrite(f, lambda t: t.pop("ptlit.mlp_head.0.weight")),
            "does not fit PtuningMlp: mlp_head.0.weight is missing.",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({"ptlit.mlp_head.0.bias": torch.zeros(3)})),
            "does not fit PtuningMlp: mlp_head.0.bias is (3,), not (16,).",
        ),
        (lambda f: rewrite(f, lambda t: t["prompt_embeddings"].fill_(torch.nan)), "not finite"),
        (
            lambda f: rewrite(f, lambda t: t.update(prompt_embeddings=torch.zeros(6, 48)), "Other"),
            "LM of another shape (tiny): its prompt_embeddings is (6, 48), and here it takes (6, 32).",
        ),
        (
            lambda f: folder_with(f, peft_type="LORA"),
            "holds LORA, which is no soft prompt that ptlit knows: ",
        ),
        (
            lambda f: folder_with(f, peft_type="PREFIX_TUNING"),
            "holds keys and values (PREFIX_TUNING) and PtuningMlp",
        ),
        (
            lambda f: folder_with(f, num_virtual_tokens=9),
            "9 virtual tokens: give prompt.num_virtual_tokens=9.",
        ),
    ],
)
def test_a_spoilt_adapter_is_one_sentence_and_loads_nothing(
    spoil: Callable[[Path], object], complaint: str, tmp_path: Path
) -> None:
    folder_with(tmp_path)
    spoil(tmp_path)
    prompt = make_prompt("ptuning_mlp", tiny_lm("llama").shape)
    before = {name: each.clone() for name, each in prompt.state_dict().items()}
    with pytest.raises(UserMistake, match=re.escape(complaint)) as said:
        read_adapter(tmp_path, prompt)
    assert str(said.value).count("\n") == 0
    assert all(torch.equal(each, before[name]) for name, each in prompt.state_dict().items())


def test_embeddings_are_no_keys_and_values(tmp_path: Path) -> None:
    folder_with(tmp_path)
    with pytest.raises(UserMistake, match="choose an input prompt"):
        read_adapter(tmp_path, make_prompt("prefix_tuning", tiny_lm("llama").shape))


def test_the_config_is_held_against_the_adapter_before_anything_is_loaded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    folder_with(run / "adapter")
    said = ["experiment=ptuning_mlp", f"prompt.init.from={run}/adapter"]
    assert complaints(*said, "prompt.num_virtual_tokens=6") == []
    assert complaints(*said) == [
        f"prompt.init.from: {run}/adapter holds 6 virtual tokens: give prompt.num_virtual_tokens=6."
    ]
    (deep,) = complaints(
        f"prompt.init.from={run}/adapter", "experiment=ptuning_v2", "prompt.num_virtual_tokens=6"
    )
    assert deep.endswith("choose an input prompt, such as prompt=prompt_tuning.")
    assert complaints("experiment=ptuning_mlp", f"prompt.init.from={run}") == complaints(*said)
    assert complaints("prompt.init.from=vocabluary") == [
        "prompt.init.from=vocabluary is not a start: did you mean vocabulary?"
    ]
    assert complaints(f"prompt.init.from={run}/adaptr") == [
        f"prompt.init.from={run}/adaptr: there is no such folder."
    ]


def test_the_model_card_shows_how_it_is_used(trained: Path) -> None:
    card = (trained / "adapter" / "README.md").read_text()
    metrics = json.loads((trained / "metrics.json").read_text())
    for said in (
        f"base_model: {trained.parent}/lm",
        "6 virtual tokens",
        "tweets.csv (labels: bad, good)",
        f"{metrics['test/accuracy']:.3f}",
        "| optim.lr | `0.05` |",
    ):
        assert said in card
    said = said_by_readme(trained / "adapter")
    run = open_run(trained)
    row = run.lm.tokenizer("Landed early, thank you!", return_tensors="pt")
    length = max(map(len, run.label_words.token_ids))
    ours = run.prompted_lm.generate(
        row["input_ids"], row["attention_mask"], max_new_tokens=length, do_sample=False
    )
    new = ours[0, row["input_ids"].shape[1] :]
    assert said == run.lm.tokenizer.decode(new, skip_special_tokens=True)
