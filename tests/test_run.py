"""A run folder, opened again with nothing but what it holds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from runs import train_at
from tiny import tiny_lm

from ptlit.mistake import UserMistake
from ptlit.run import open_run


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def test_it_opens_anywhere_without_the_data(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(copy, lambda config: config["data"].update(path="gone.csv"))
    monkeypatch.chdir(tmp_path)
    run = open_run("copy")
    assert run.label_words is not None and run.template is not None
    assert run.label_words.names == ("bad", "good") and run.label_words.words == ((" bad",), (" good",))
    assert run.template.template == "{text}" and run.max_length == 64
    assert not run.prompted_lm.training and not run.prompted_lm.prompt.training
    state = torch.load(copy / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    opened = run.prompted_lm.prompt.state_dict()
    assert {name.removeprefix("prompted_lm.prompt."): True for name in state} == dict.fromkeys(opened, True)
    assert all(torch.equal(state[f"prompted_lm.prompt.{name}"], opened[name]) for name in opened)


def test_the_lm_is_loaded_once(trained: Path) -> None:
    assert open_run(trained).lm is open_run(trained, "last").lm


def test_odd_label_names_come_back_as_they_were(place: Path) -> None:
    rows = ["text,label", *(f"a {i} b,{'no' if i % 2 else '1'}" for i in range(40))]
    rows += [f"c {i} d,${{x}}" for i in range(20)]
    (place / "odd.csv").write_text("\n".join(rows))
    folder = train_at(place, "odd", "experiment=prompt_tuning", "data.path=odd.csv", "trainer.max_steps=1")
    assert open_run(folder).label_words.names == ("${x}", "1", "no")
    assert open_run(folder).label_words.words == ((" ${x}",), (" 1",), (" no",))


def test_a_config_that_leaves_things_to_the_classes_is_completed(place: Path) -> None:
    words = ["~data.eval_batch_size", "~data.on_bad_row"]
    folder = train_at(place, "bare", "experiment=prompt_tuning", "trainer.max_steps=1", *words)
    run = open_run(folder)
    assert run.cfg.data.eval_batch_size == 32 and run.cfg.data.on_bad_row == "error"
    assert run.label_words.names == ("bad", "good")


def test_another_lm_of_the_same_shape_is_refused(copy: Path, tmp_path: Path) -> None:
    lm = tiny_lm("llama", spread=0.3)
    lm.model.save_pretrained(tmp_path / "other")
    lm.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserMistake, match="has other weights"):
        open_run(copy, lm=str(tmp_path / "other"))


def test_a_moved_lm_is_found_by_its_new_name(copy: Path, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "lm", tmp_path / "moved")
    assert open_run(copy, lm=str(tmp_path / "moved")).lm.name == str((tmp_path / "moved").resolve())


def test_what_is_missing_or_broken_is_said(copy: Path, tmp_path: Path) -> None:
    def says(sentence: str, path: Path = copy, checkpoint: str = "best") -> None:
        with pytest.raises(UserMistake, match=sentence):
            open_run(path, checkpoint)

    says("there is no such folder", tmp_path / "nowhere")
    says("holds 1 runs, of a sweep perhaps: choose one, such as .*copy", tmp_path)
    (tmp_path / "empty").mkdir()
    says("is no run folder: it has no config.yaml", tmp_path / "empty")
    best = copy / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    best.write_bytes(whole[:1000])
    says("best.ckpt is broken")
    best.unlink()
    says("there is no checkpoint at .*best.ckpt .there is checkpoint=last")
    best.write_bytes(whole)
    (copy / "base_model.json").write_text("[]")
    says("base_model.json is broken")
    (copy / "config.yaml").write_text("a: [")
    says("config.yaml cannot be read")
    (copy / "config.yaml").write_text("seed: 1")
    says("lacks model and prompt and data")


def test_an_incomplete_config_is_said(copy: Path) -> None:
    for key in ("max_length", "template"):
        edit_config(copy, lambda config, key=key: config["data"].pop(key))
        with pytest.raises(UserMistake, match=f"lacks data.{key}"):
            open_run(copy)
        edit_config(copy, lambda config: config["data"].update(max_length=64))


def test_a_checkpoint_of_another_prompt_is_not_half_loaded(copy: Path) -> None:
    edit_config(copy, lambda config: config["prompt"].update(num_virtual_tokens=5))
    with pytest.raises(UserMistake, match=r"embedding.weight is \(6, 32\), not \(5, 32\)"):
        open_run(copy)
    edit_config(copy, lambda config: config["prompt"].update(_target_="ptlit.prompt.PromptTuning"))
    with pytest.raises(UserMistake, match="hidden_size is not an option of PromptTuning"):
        open_run(copy)
    node = {"_target_": "ptlit.prompt.PromptTuning", "num_virtual_tokens": 6}
    edit_config(copy, lambda config: config.update(prompt=node))
    with pytest.raises(UserMistake, match="does not fit PromptTuning: lstm_head.weight_ih_l0 is unknown"):
        open_run(copy)


def test_labels_that_were_not_noted(copy: Path) -> None:
    edit_config(copy, lambda config: config["data"].update(label_words=None))
    with pytest.raises(UserMistake, match="does not name the labels"):
        open_run(copy)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("model", "trust_remote_code", True),
        ("model", "_target_", "os.system"),
        ("model", "_target_", "ptlit.lm.torch.load"),
        ("prompt", "_target_", "evil.Prompt"),
        ("prompt", "_target_", "ptlit.prompt.init.torch.hub.load"),
        ("prompt", "hidden_size", {"_target_": "evil.Prompt"}),
        ("data", "template", {"_target_": "evil.Prompt"}),
    ],
)
def test_a_stranger_runs_no_code(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, key: str, value: object
) -> None:
    (tmp_path / "evil.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    edit_config(copy, lambda config: config[part].update({key: value}))
    with pytest.raises(UserMistake, match="give trust_code=true"):
        open_run(copy)


def test_resuming_before_another_lm_is_refused(place: Path, copy: Path) -> None:
    noted = json.loads((copy / "base_model.json").read_text())
    (copy / "base_model.json").write_text(json.dumps(noted | {"fingerprint": "0"}))
    with pytest.raises(SystemExit, match="has other weights"):
        train_at(place, str(copy), f"resume={copy}", "trainer.max_steps=12")
