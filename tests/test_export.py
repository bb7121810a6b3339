"""What leaves a run: each folder is used as its own README says, and answers as the run does."""

import importlib.util
import io
import json
import re
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import make_prompt
from peft import PeftModel
from runs import call, train_at
from tiny import tiny_lm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    pipeline,
)

from ptlit.export import export, main, named_paths
from ptlit.lm import load_lm
from ptlit.mistake import UserMistake
from ptlit.older_readers import say_rotary_base
from ptlit.peft_format import write_adapter
from ptlit.prefix_file import load_cache, load_prefix
from ptlit.run import Run, open_run

TEXT = "Landed early, thank you!"


def test_the_command(place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = f"run={{mood: {trained}, mood2: {trained}}}"
    call(place, main, named, f"output={tmp_path}/named")
    prompts = json.loads((tmp_path / "named" / "ptlit_prompts.json").read_text())
    assert [prompt["name"] for prompt in prompts] == ["mood", "mood2"]
    call(place, main, "run=run", f"output={tmp_path}/a=b, c", "format=kv")
    assert (tmp_path / "a=b, c" / "prefix.safetensors").is_file()
    for words, complaint in (
        (["run=run"], "output has no value"),
        (["run=run", "output=new", "format=vlm"], "did you mean vllm?"),
        (["run=rn", "output=new"], "run=rn: there is no such folder."),
        (["run=run", "output=lm"], "output=lm is there already"),
    ):
        with pytest.raises(SystemExit) as end:
            call(place, main, *words)
        assert complaint in str(end.value)
    assert not (place / "new").exists()


def test_a_prompt_may_be_named_by_a_number(place: Path, trained: Path, tmp_path: Path) -> None:
    call(place, main, f"run={{1: {trained}}}", f"output={tmp_path}/numbered")
    (prompt,) = json.loads((tmp_path / "numbered" / "ptlit_prompts.json").read_text())
    assert prompt["name"] == "1"
    with pytest.raises(UserMistake, match="run: 'a b' is no name for a prompt"):
        named_paths({"a b": "runs/a"})


@pytest.fixture(scope="module")
def deep(place: Path) -> Path:
    return train_at(place, "deep_template", "experiment=prefix_tuning", "data.template='Tweet: {text} is '")


def greedy(run: Run, text: str, new_tokens: int) -> str:
    row = run.lm.tokenizer(text, return_tensors="pt")
    ids = run.prompted_lm.generate(
        row["input_ids"], row["attention_mask"], max_new_tokens=new_tokens, do_sample=False
    )
    return str(run.lm.tokenizer.decode(ids[0, row["input_ids"].shape[1] :], skip_special_tokens=True))


def said_by_readme(folder: Path, snippet: int = 0) -> str:
    """What the README's Python prints, run in that folder as it stands."""
    found = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    said = io.StringIO()
    with chdir(folder), redirect_stdout(said):
        exec(found[snippet], {})
    return said.getvalue().removesuffix("\n")


def test_checkpoint(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(str(trained), str(tmp_path / "baked"))
    assert "Baked: logits equal to the last bit." in capsys.readouterr().out
    run = open_run(trained)
    expected = TEXT + greedy(run, TEXT, 8)
    write = pipeline("text-generation", model=str(tmp_path / "baked"))
    assert write(TEXT, max_new_tokens=8, do_sample=False)[0]["generated_text"] == expected
    chat = write([{"role": "user", "content": f" {TEXT}\n"}], max_new_tokens=8, do_sample=False)
    assert chat[0]["generated_text"][-1]["content"] == expected.removeprefix(TEXT)  # through the template
    length = max(map(len, run.label_words.token_ids))
    assert said_by_readme(tmp_path / "baked") == greedy(run, TEXT, length)
    card = (tmp_path / "baked" / "README.md").read_text()
    assert f"{json.loads((trained / 'metrics.json').read_text())['test/accuracy']:.3f}" in card
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_a_head_of_its_own(trained: Path, tmp_path: Path) -> None:
    export(str(trained), str(tmp_path / "baked"), own_head=True)
    run = open_run(trained)
    length = max(map(len, run.label_words.token_ids))
    assert said_by_readme(tmp_path / "baked") == greedy(run, TEXT, length)
    assert "logit_bias" not in (tmp_path / "baked" / "README.md").read_text()
    with pytest.raises(UserMistake, match="own_head=true is for format=checkpoint"):
        export(str(trained), str(tmp_path / "kv"), "kv", own_head=True)


def test_several_runs_in_one_checkpoint(place: Path, trained: Path, tmp_path: Path) -> None:
    other = train_at(place, "other", "experiment=prompt_tuning", "seed=5", "prompt.num_virtual_tokens=3")
    export({"mood": str(trained), "other": str(other)}, str(tmp_path / "named"))
    export([str(trained), str(other)], str(tmp_path / "listed"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "listed")
    assert "<ptlit_run_0><ptlit_run_1>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False
    )
    write = pipeline("text-generation", model=str(tmp_path / "named"))
    prompts = {
        each["name"]: each for each in json.loads((tmp_path / "named" / "ptlit_prompts.json").read_text())
    }
    for name, folder in (("mood", trained), ("other", other)):
        row = prompts[name]["prefix"] + TEXT
        written = write(row, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
        assert written == greedy(open_run(folder), TEXT, 8)
    run = open_run(trained)
    length = max(map(len, run.label_words.token_ids))
    assert said_by_readme(tmp_path / "named") == greedy(run, TEXT, length)


def test_llama_cpp(trained: Path, tmp_path: Path) -> None:
    """Its converter is not at hand; tried on the bundled LM, it gave the same weights, logits and words."""
    export(str(trained), str(tmp_path / "new"), "llama_cpp")
    card = (tmp_path / "new" / "README.md").read_text()
    assert "convert_hf_to_gguf.py" in card and "add_bos_token" not in card  # this LM has no BOS before a text
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert model.config.vocab_size == 259 + 6
    said = json.loads((tmp_path / "new" / "config.json").read_text())
    trained_on = open_run(trained).lm.model.config.rope_parameters
    assert said["rope_theta"] == trained_on["rope_theta"] and "rope_scaling" not in said
    assert model.config.rope_parameters == trained_on
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("config", "in_old_words"),
    [
        (LlamaConfig(), {"rope_theta": 10000.0}),
        (Gemma3TextConfig(), {"rope_theta": 1e6, "rope_local_base_freq": 1e4}),
        (GPT2Config(), {}),
        (
            LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}),
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
    ],
)
def test_the_rotary_base_in_old_words(
    config: PretrainedConfig, in_old_words: dict[str, object], tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    say_rotary_base(tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text()) == before | in_old_words
    read = type(config).from_pretrained(tmp_path)
    assert getattr(read, "rope_parameters", None) == getattr(config, "rope_parameters", None)


def test_prefix_file(deep: Path, tmp_path: Path) -> None:
    export(str(deep), str(tmp_path / "kv"), "kv")
    run = open_run(deep)
    text = f"Tweet: {TEXT} is"
    expected = greedy(run, text, max(map(len, run.label_words.token_ids)))
    assert said_by_readme(tmp_path / "kv") == expected
    prefix = load_prefix(tmp_path / "kv", run.lm)
    assert all(map(torch.equal, prefix.keys, run.prompted_lm.prefix().keys))
    assert all(map(torch.equal, prefix.values, run.prompted_lm.prefix().values))
    row = run.lm.tokenizer([text, text], return_tensors="pt")
    cache = load_cache(tmp_path / "kv", run.lm, batch_size=2)
    logits = run.lm.model(row["input_ids"], past_key_values=cache).logits
    with torch.no_grad():
        ours = run.prompted_lm(row["input_ids"], row["attention_mask"], row["attention_mask"].bool())
    torch.testing.assert_close(logits.flatten(0, 1), ours, rtol=1e-4, atol=1e-4)


def test_prefix_file_of_another_lm(deep: Path, tmp_path: Path) -> None:
    export(str(deep), str(tmp_path / "kv"), "kv")
    with pytest.raises(UserMistake, match="in-memory has other weights"):
        load_prefix(tmp_path / "kv", tiny_lm("llama", spread=0.3))
    (tmp_path / "kv" / "prefix.safetensors").write_bytes(b"short")
    with pytest.raises(UserMistake, match="cannot be read"):
        load_prefix(tmp_path / "kv", tiny_lm("llama"))


def test_keys_and_values_of_embeddings_are_a_prefix_too(trained: Path, tmp_path: Path) -> None:
    export(str(trained), str(tmp_path / "kv"), "kv")
    run = open_run(trained)
    row = run.lm.tokenizer(TEXT, return_tensors="pt")
    prefix = load_prefix(tmp_path / "kv", run.lm)
    ids = run.prompted_lm.generate(**row_of(row), prefix=prefix, max_new_tokens=8, do_sample=False)
    assert run.lm.tokenizer.decode(ids[0], skip_special_tokens=True) == TEXT + greedy(run, TEXT, 8)


def row_of(row: Any) -> dict[str, Any]:
    return {key: row[key] for key in ("input_ids", "attention_mask")}


def test_peft(trained: Path, tmp_path: Path) -> None:
    export(str(trained), str(tmp_path / "peft"), "peft")
    run = open_run(trained)
    base = AutoModelForCausalLM.from_pretrained(run.lm.name)
    model = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
    row = row_of(run.lm.tokenizer(TEXT, return_tensors="pt"))
    ids = model.generate(**row, max_new_tokens=8, do_sample=False)
    assert run.lm.tokenizer.decode(ids[0], skip_special_tokens=True) == TEXT + greedy(run, TEXT, 8)
    for name in ("adapter_config.json", "README.md"):
        assert (tmp_path / "peft" / name).read_bytes() == (trained / "adapter" / name).read_bytes()


def test_vllm(place: Path, trained: Path, tmp_path: Path) -> None:
    """The client's embeddings are those of the reference; no vLLM is at hand to be asked."""
    templated = train_at(
        place,
        "templated",
        "experiment=ptuning_mlp",
        "data.template='Tweet: {text} Mood: '",
        "trainer.max_steps=1",
    )
    for name, folder, read in (("plain", trained, TEXT), ("templated", templated, f"Tweet: {TEXT} Mood:")):
        there = tmp_path / name
        export(str(folder), str(there), "vllm")
        spec = importlib.util.spec_from_file_location(f"client_{name}", there / "client.py")
        client = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(client)
        run = open_run(folder)
        ids = run.lm.tokenizer(read, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted = torch.cat([run.prompted_lm.prompt(), run.lm.embed(ids[0])])
        sent = client.Client(there).prompt_embeds(f" {TEXT}" if name == "templated" else TEXT)
        torch.testing.assert_close(sent, wanted, rtol=1e-5, atol=1e-6)  # an LSTM's last bits vary
        assert torch.equal(sent[6:], wanted[6:])
        body = client.Client(there).request(TEXT, max_tokens=3)
        assert body["model"] == run.lm.name and body["prompt"] == "" and body["max_tokens"] == 3


def test_what_peft_trained_can_be_baked(place: Path, tmp_path: Path) -> None:
    lm = load_lm(f"{place}/lm")
    prompt = make_prompt("ptuning_lstm", lm.shape).eval()
    write_adapter(tmp_path / "adapter", prompt, lm.shape, lm.name)
    export(str(tmp_path / "adapter"), str(tmp_path / "baked"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    rows = model.get_input_embeddings().weight[-prompt.num_virtual_tokens :]
    with torch.no_grad():
        assert torch.equal(rows, prompt())


def refused(tmp_path: Path, *said: Any, **more: Any) -> str:
    with pytest.raises(UserMistake) as mistake:
        export(*said, **more)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    return str(mistake.value)


def test_mistakes_leave_nothing(place: Path, trained: Path, deep: Path, tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    assert "use format=kv for a prefix file" in refused(tmp_path, str(deep), new)
    assert "use format=kv" in refused(tmp_path, str(deep), new, "vllm")
    assert "format=peft takes one run" in refused(tmp_path, [str(trained), str(deep)], new, "peft")
    assert "there is no such folder" in refused(tmp_path, str(tmp_path / "gone"), new)
    assert "two folders are called run" in refused(tmp_path, [str(trained)] * 2, new)
    assert "'a b' is no name for a prompt" in refused(tmp_path, {"a b": str(trained)}, new)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    assert "is there already" in refused(tmp_path, str(trained), str(tmp_path / "full"))
    assert "is there already" in refused(tmp_path, str(trained), str(tmp_path / "full" / "kept"))
    assert "cannot be made: Not a directory" in refused(
        tmp_path, str(trained), str(tmp_path / "full" / "kept" / "x")
    )
    assert not (tmp_path / "new").exists() and (tmp_path / "full" / "kept").exists()
    lm = tiny_lm("llama")
    lm.model.save_pretrained(tmp_path / "lm2")
    lm.tokenizer.save_pretrained(tmp_path / "lm2")
    write_adapter(tmp_path / "two", make_prompt("prompt_tuning", lm.shape), lm.shape, str(tmp_path / "lm2"))
    assert "one checkpoint holds one LM" in refused(tmp_path, [str(trained), str(tmp_path / "two")], new)
    (tmp_path / "empty").mkdir()
    export(str(trained), str(tmp_path / "empty"))
    assert (tmp_path / "empty" / "model.safetensors").is_file()
