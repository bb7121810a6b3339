"""Runs on an LM whose tokenizer puts BOS before a text: the prompt stands behind it, wherever it goes."""

import importlib.util
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from chats import chat_tokenizer, dialogue
from methods import make_prompt
from omegaconf import OmegaConf
from peft import PeftModel, get_peft_model
from runs import call, make_place, train_at
from safetensors.torch import load_file, save_file
from test_export import said_by_readme
from tiny import tiny_lm
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ptlit.build import other_place
from ptlit.data import ChatTemplate
from ptlit.data.example import encode
from ptlit.evaluate import main as evaluate
from ptlit.export import export, opened_adapter
from ptlit.findings import start_of
from ptlit.inspect_data import main as inspect_data
from ptlit.mistake import UserMistake
from ptlit.peft_format import open_adapter, read_adapter, read_config
from ptlit.predict import main as predict
from ptlit.prefix_file import load_cache
from ptlit.prompted_lm import PromptedLM
from ptlit.resume import resumed
from ptlit.run import Run, open_run
from ptlit.train import main as train

TEXT = "Landed early, thank you!"
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("bos"))
    tokenizer = chat_tokenizer("llama3")
    tokenizer.save_pretrained(folder / "lm")
    lm = tiny_lm("llama", spread=0.2, vocabulary=len(tokenizer))
    lm.model.save_pretrained(folder / "lm")
    lines = [json.dumps({"messages": dialogue(1, f"name {i}")}) for i in range(30)]
    (folder / "chats.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def theirs(place: Path) -> Path:
    """An adapter that PEFT wrote."""
    base = AutoModelForCausalLM.from_pretrained(place / "lm")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    get_peft_model(base, config).save_pretrained(place / "theirs")
    return place / "theirs"


@pytest.fixture(scope="module")
def behind(place: Path, theirs: Path) -> Path:
    """What it printed is in `said.txt`."""
    words = ["experiment=ptuning_mlp", "data.template='Tweet: {text} is '", "prompt.init.from=theirs"]
    with (place / "said.txt").open("w") as file, redirect_stdout(file):
        return train_at(place, "behind", *words)


@pytest.fixture(scope="module")
def before(place: Path) -> Path:
    return train_at(place, "before", "experiment=prompt_tuning", "data.before_bos=true")


def ids_of(run: Run, text: str) -> Tensor:
    return run.lm.tokenizer(text, return_tensors="pt")["input_ids"]


def by_hand(run: Run, ids: Tensor) -> Tensor:
    """Logits (T, V) at the words of one row (1, T): of its BOS, the virtual tokens and its text."""
    words = run.lm.embed(ids)
    embeds = torch.cat([words[:, :1], run.prompted_lm.prompt()[None], words[:, 1:]], dim=1)
    with torch.no_grad():
        logits = run.lm.model(inputs_embeds=embeds, use_cache=False).logits[0]
    return torch.cat([logits[:1], logits[-len(ids[0]) + 1 :]])


def said_by_hand(run: Run, text: str, count: int = 6) -> str:
    ids = ids_of(run, text)
    start = ids.shape[1]
    for _ in range(count):
        ids = torch.cat([ids, by_hand(run, ids)[-1].argmax()[None, None]], dim=1)
    return str(run.lm.tokenizer.decode(ids[0, start:], skip_special_tokens=True))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_a_run_is_opened_and_judged_as_it_was_trained(place: Path, behind: Path) -> None:
    run = open_run(behind)
    assert run.prompted_lm.front.leading == (1,) and not run.cfg.data.before_bos
    call(place, evaluate, "run=behind")
    judged = json.loads((behind / "evaluation" / "test" / "metrics.json").read_text())
    trained = json.loads((behind / "metrics.json").read_text())
    assert judged["test/loss"] == pytest.approx(trained["test/loss"], rel=1e-5)

    call(place, predict, "run=behind", "input=tweets.csv", "output=answers.jsonl")
    answers = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    for answer in answers[:3]:
        ids = ids_of(run, f"Tweet: {answer['text']} is")
        scores = []
        for word in run.label_words.token_ids:
            whole = torch.cat([ids, torch.tensor([word])], dim=1)
            said = by_hand(run, whole)[-len(word) - 1 : -1].log_softmax(-1)
            scores.append(said.gather(1, torch.tensor(word)[:, None]).sum())
        chances = torch.stack(scores).softmax(0).tolist()
        assert answer["probability_bad"] == pytest.approx(chances[0], abs=1e-4)


def test_runs_with_both_places_answer_one_file(place: Path, behind: Path, before: Path) -> None:
    rows = [json.dumps({"text": f"flight {i}", "task": ("behind", "before")[i % 2]}) for i in range(6)]
    (place / "tasks.jsonl").write_text("\n".join(rows))
    words = ["run_column=task", "input=tasks.jsonl", "output=both.jsonl"]
    call(place, predict, "run=[behind,before]", *words)
    answers = [json.loads(line) for line in (place / "both.jsonl").read_text().splitlines()]
    for i, run in enumerate((open_run(behind), open_run(before))):
        for answer in answers[i::2]:
            read = encode(run.template.example(answer["text"]), run.lm.tokenizer, 99)["input_ids"]
            ids = torch.tensor([read])
            with torch.no_grad():
                scores = run.prompted_lm.label_scores(ids, torch.ones_like(ids), run.label_words.token_ids)
            chance = float(scores[0].softmax(0)[0])
            assert answer["probability_bad"] == pytest.approx(chance, abs=1e-4)


def test_before_bos_is_peft_s_place(place: Path, before: Path) -> None:
    run = open_run(before)
    assert run.prompted_lm.front.leading == () and read_config(before / "adapter")["leading"] == ()
    base = AutoModelForCausalLM.from_pretrained(place / "lm")
    model = PeftModel.from_pretrained(base, str(before / "adapter")).eval()
    ids = ids_of(run, TEXT)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask).logits[0, 6:]
        close(run.prompted_lm(ids, mask, mask.bool()), theirs)
    assert said_by_readme(before / "adapter") == said(run, TEXT, words_of(run))


def words_of(run: Run) -> int:
    return max(map(len, run.label_words.token_ids))


def said(run: Run, text: str, count: int) -> str:
    ids = ids_of(run, text)
    whole = run.prompted_lm.generate(ids, torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return str(run.lm.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))


def test_a_run_of_before_it_could_be_chosen_stays_before_bos(place: Path, behind: Path) -> None:
    old = place / "old"
    shutil.copytree(behind, old)
    cfg = OmegaConf.load(old / "config.yaml")
    del cfg.data["before_bos"]
    OmegaConf.save(cfg, old / "config.yaml")
    assert open_run(old).prompted_lm.front.leading == ()
    assert "++data.before_bos=true" in resumed([f"resume={old}", "trainer.max_steps=12"])
    assert not any("before_bos" in word for word in resumed([f"resume={behind}", "trainer.max_steps=12"]))
    call(place, train, f"resume={old}", "trainer.max_steps=12")
    assert OmegaConf.load(old / "config.yaml").data.before_bos is True


def test_peft_reads_the_adapter_before_a_text_without_bos(place: Path, behind: Path, tmp_path: Path) -> None:
    run = open_run(behind)
    export(str(behind), str(tmp_path / "peft"), "peft")
    ids = ids_of(run, TEXT)
    alone = run.lm.tokenizer(TEXT, add_special_tokens=False, return_tensors="pt")
    assert alone["input_ids"].tolist() == ids[:, 1:].tolist()
    for folder in (behind / "adapter", tmp_path / "peft"):
        base = AutoModelForCausalLM.from_pretrained(place / "lm")
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        row = {key: alone[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            close(model(**row).logits[0, 7:], by_hand(run, ids)[1:])
        text = run.lm.tokenizer.decode(
            model.generate(**row, **GREEDY)[0, ids.shape[1] - 1 :], skip_special_tokens=True
        )
        assert text == said_by_hand(run, TEXT)
        assert "add_special_tokens=False" in (folder / "README.md").read_text()
        assert said_by_readme(folder) == said_by_hand(run, f"Tweet: {TEXT} is", words_of(run))


def test_the_adapter_comes_back_without_its_bos(behind: Path) -> None:
    run, folder = open_run(behind), behind / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["num_virtual_tokens"] == 7
    assert read_config(folder) | {"base_model": ""} == {
        "peft_type": "P_TUNING",
        "num_virtual_tokens": 6,
        "leading": (1,),
        "base_model": "",
    }
    assert torch.equal(open_adapter(folder).embeddings, run.prompted_lm.prompt().detach())
    source = opened_adapter(folder, None)
    assert source.prompted_lm.front.leading == (1,)
    other = make_prompt("prompt_tuning", run.lm.shape)
    assert "starts from the output" in read_adapter(folder, other)
    assert torch.equal(other(), run.prompted_lm.prompt())

    same = make_prompt("ptuning_mlp", run.lm.shape, hidden_size=128)
    assert "with all that was learned." in read_adapter(folder, same)
    assert torch.equal(same(), run.prompted_lm.prompt())
    assert other_place(folder, run.prompted_lm) == []
    moved = PromptedLM(run.lm, run.prompted_lm.prompt)
    assert other_place(folder, moved) == ["There it stood behind BOS, here before it."]


def test_what_peft_trained_stands_before_bos(place: Path, theirs: Path, behind: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(place / "lm")
    model = PeftModel.from_pretrained(base, str(theirs)).eval()
    opened = opened_adapter(theirs, f"{place}/lm").prompted_lm
    ids = AutoTokenizer.from_pretrained(place / "lm")(TEXT, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        close(opened(ids, mask, mask.bool()), model(input_ids=ids, attention_mask=mask).logits[0, 6:])
    said = "There it stood before BOS, here behind it: data.before_bos=true puts it back."
    assert said in (place / "said.txt").read_text()
    assert other_place(theirs, opened) == []


def test_baked(behind: Path, before: Path, tmp_path: Path) -> None:
    run = open_run(behind)
    for number, source in enumerate((behind, behind / "adapter")):
        folder = tmp_path / str(number)
        export(str(source), str(folder))
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        (prompt,) = json.loads((folder / "ptlit_prompts.json").read_text())
        row, ids = tokenizer(TEXT, return_tensors="pt"), ids_of(run, TEXT)
        assert row["input_ids"].tolist() == [[1, *prompt["ids"], *ids[0, 1:].tolist()]]
        with torch.no_grad():
            logits = model(**row, use_cache=False).logits[0, :, : len(run.lm.tokenizer)]
        close(logits[7:], by_hand(run, ids)[1:])
    assert "behind BOS." in (tmp_path / "0" / "README.md").read_text()
    assert said_by_readme(tmp_path / "0") == said_by_hand(run, f"Tweet: {TEXT} is", words_of(run))
    message = [{"role": "user", "content": TEXT}]
    read = AutoTokenizer.from_pretrained(tmp_path / "0").apply_chat_template(message)["input_ids"]
    assert read == [1, *prompt["ids"], *ids_of(run, f"Tweet: {TEXT} is")[0, 1:].tolist()]

    export({"a": str(behind), "b": str(before)}, str(tmp_path / "both"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "both")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    first, second = json.loads((tmp_path / "both" / "ptlit_prompts.json").read_text())
    assert first["prefix"].startswith("<bos><ptlit_a_0>") and second["prefix"].endswith("<ptlit_b_5><bos>")
    for prompt, opened in ((first, run), (second, open_run(before))):
        row = tokenizer(prompt["prefix"] + TEXT, return_tensors="pt")
        written = model.generate(**row, **GREEDY)[0, row["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == said(opened, TEXT, 6)

    export(str(behind), str(tmp_path / "llama_cpp"), "llama_cpp")
    (prompt,) = json.loads((tmp_path / "llama_cpp" / "ptlit_prompts.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama_cpp")
    read = tokenizer(prompt["prefix"] + TEXT, add_special_tokens=False)["input_ids"]
    assert read == [1, *prompt["ids"], *ids[0, 1:].tolist()]
    assert "add_bos_token=bool:false" in (tmp_path / "llama_cpp" / "README.md").read_text()


def test_an_adapter_that_says_nonsense_of_its_place_is_one_sentence(theirs: Path, tmp_path: Path) -> None:
    shutil.copy(theirs / "adapter_config.json", tmp_path)
    tensors = load_file(theirs / "adapter_model.safetensors")
    for said in ("{", '["a"]', "3"):
        metadata = {"format": "pt", "ptlit_leading": said}
        save_file(tensors, tmp_path / "adapter_model.safetensors", metadata=metadata)
        with pytest.raises(UserMistake, match="adapter_model.safetensors is broken: "):
            open_adapter(tmp_path)


def test_prefix_file(behind: Path, tmp_path: Path) -> None:
    run = open_run(behind)
    export(str(behind), str(tmp_path / "kv"), "kv")
    assert said_by_readme(tmp_path / "kv") == said_by_hand(run, f"Tweet: {TEXT} is", words_of(run))
    cache = load_cache(tmp_path / "kv", run.lm)
    assert isinstance(cache, DynamicCache) and cache.get_seq_length() == 7
    ids = ids_of(run, TEXT)
    with torch.no_grad():
        close(run.lm.model(ids[:, 1:], past_key_values=cache).logits[0], by_hand(run, ids)[1:])
    card = (tmp_path / "kv" / "README.md").read_text()
    assert "BOS and 6 virtual tokens behind it" in card and "the text goes in without it." in card


def test_vllm(behind: Path, tmp_path: Path) -> None:
    run = open_run(behind)
    export(str(behind), str(tmp_path / "vllm"), "vllm")
    spec = importlib.util.spec_from_file_location("client_behind_bos", tmp_path / "vllm" / "client.py")
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    words = run.lm.embed(ids_of(run, f"Tweet: {TEXT} is")[0])
    wanted = torch.cat([words[:1], run.prompted_lm.prompt(), words[1:]])
    torch.testing.assert_close(client.Client(tmp_path / "vllm").prompt_embeds(TEXT), wanted)


def test_a_data_look_shows_the_place(place: Path, capsys: Any) -> None:
    words = [
        "model=hf",
        f"model.name_or_path={place}/lm",
        "data=classification",
        "data.path=tweets.csv",
        "rows=1",
    ]
    call(place, inspect_data, *words, "prompt=ptuning_mlp")
    assert "<bos>‹20 virtual tokens›Text:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "adds_bos", "leading"),
    [("llama3", True, [1]), ("llama3", False, []), ("qwen3", True, []), ("smollm2", False, [])],
)
def test_a_chat_begins_with_bos_where_template_and_tokenizer_say_so(
    family: str, adds_bos: bool, leading: list[int]
) -> None:
    assert ChatTemplate(chat_tokenizer(family, adds_bos)).leading == leading


def test_chats(place: Path, tmp_path: Path) -> None:
    words = ["experiment=chat_ptuning", "data=chat", "data.path=chats.jsonl", "prompt.num_virtual_tokens=6"]
    words += ["model=hf", f"model.name_or_path={place}/lm", "trainer.max_steps=2", "hydra.run.dir=chat"]
    words += ["data.max_length=200"]
    call(place, train, *words)
    run = open_run(place / "chat")
    assert run.prompted_lm.front.leading == (1,)
    export(str(place / "chat"), str(tmp_path / "baked"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "baked")
    (prompt,) = json.loads((tmp_path / "baked" / "ptlit_prompts.json").read_text())
    messages = [*dialogue(2, system="Be brief."), {"role": "user", "content": "And?"}]
    read = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    old = ChatTemplate(run.lm.tokenizer).ids(messages)
    assert read == [1, *prompt["ids"], *old[1:]]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    theirs = model.generate(torch.tensor([read]), attention_mask=torch.ones(1, len(read)), **GREEDY)
    row = torch.tensor([old])
    ours = run.prompted_lm.generate(row, torch.ones_like(row), **GREEDY)
    assert theirs[0, len(read) :].tolist() == ours[0, len(old) :].tolist()
    assert said_by_readme(place / "chat" / "adapter") == said(run, TEXT, 30)


def test_keys_and_values_start_behind_bos_too_and_inspect_knows(place: Path) -> None:
    """A run that hardly learned is where transformers' own keys and values of BOS and the text are."""
    run = open_run(
        train_at(place, "deep", "experiment=prefix_tuning", "optim.lr=1e-12", "trainer.max_steps=1")
    )
    text = run.cfg.data.instruction
    ids = torch.tensor([run.lm.tokenizer(text)["input_ids"][: run.prompted_lm.num_virtual_tokens]])
    assert ids[0, 0] == run.lm.tokenizer.bos_token_id
    layers = run.lm.model(
        input_ids=ids, past_key_values=DynamicCache(), use_cache=True
    ).past_key_values.layers
    start = start_of(run)
    for layer, learned, rebuilt in zip(layers, run.prompted_lm.prompt(), start.learned, strict=True):
        for kept, here, there in zip((layer.keys, layer.values), learned, rebuilt, strict=True):
            close(here, kept[0].transpose(0, 1))
            close(there, kept[0].transpose(0, 1))
