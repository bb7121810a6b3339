"""The command itself, from the shell to the run folder, with an LM that is tiny but real."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from runs import make_place
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # no hub is asked, nor waited for


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny LM and a small file of tweets."""
    return make_place(tmp_path_factory.mktemp("place"))


def command(*words: str) -> list[str]:
    options = ["model=hf", "model.name_or_path=lm", "data=classification", "data.path=tweets.csv"]
    options += [
        "data.max_length=64",
        "data.template='{text}'",
        "trainer.val_check_interval=10",
        "optim.lr=0.05",
    ]
    flags = [word for word in words if word.startswith("-")]
    return [
        sys.executable,
        "-m",
        "ptlit.train",
        *flags,
        *options,
        *(word for word in words if word not in flags),
    ]


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=place, env=OFFLINE, capture_output=True, text=True, timeout=300
    )


def run_as_said(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Nothing but these words: resuming knows the rest."""
    said = [sys.executable, "-m", "ptlit.train", *words]
    return subprocess.run(said, cwd=place, env=OFFLINE, capture_output=True, text=True, timeout=300)


def without_timings(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if not k.startswith(("speed/", "memory/", "seconds/"))}


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Path, str]:
    done = run(place, "experiment=ptuning_lstm", "trainer.max_steps=30", "hydra.run.dir=run1")
    assert done.returncode == 0, done.stderr
    return place / "run1", done.stdout


def test_it_says_what_a_user_wants_to_know(finished: tuple[Path, str]) -> None:
    folder, said = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    trainable, total = metrics["parameters/trainable"], metrics["parameters/total"]
    assert f"trainable {trainable:,} / all {total:,} / {100 * trainable / total:.4f} %" in said
    assert "tensorboard --logdir run1/tensorboard" in said  # as one would type it there
    for line in ("trained prompt", "untrained LM, same template", "always the most frequent class"):
        assert line in said
    assert "Traceback" not in said


def test_metrics_json_is_complete_and_agrees_with_the_best_checkpoint(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    splits = {
        f"{split}/{name}" for split in ("val", "test") for name in ("accuracy", "macro_f1", "loss", "f1_bad")
    }
    baselines = {
        f"baseline/{b}/{name}" for b in ("hard_prompt", "majority") for name in ("accuracy", "macro_f1")
    }
    run_figures = {"parameters/trainable", "parameters/total", "speed/examples_per_second", "memory/peak_mb"}
    assert splits | baselines | run_figures | {"seconds/fit"} <= metrics.keys()
    assert metrics["baseline/majority/accuracy"] == 0.5
    with (folder / "metrics.csv").open() as file:
        scores = [float(row["val/macro_f1"]) for row in csv.DictReader(file) if row["val/macro_f1"]]
    assert metrics["val/macro_f1"] == pytest.approx(max(scores), abs=1e-6)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["validated"] == {name: value for name, value in metrics.items() if name.startswith("val/")}


def test_checkpoints_are_small_and_load_as_plain_weights(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for name in ("best.ckpt", "last.ckpt"):
        state = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]
        assert all(key.startswith("prompted_lm.prompt.") for key in state)


def test_tensorboard_holds_scalars_hparams_confusion_matrix_and_samples(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    tags: dict[str, set[str]] = {"scalars": set(), "images": set(), "tensors": set()}
    plugins: set[str] = set()
    for file in (folder / "tensorboard").glob("events*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for kind, names in tags.items():
            names.update(events.Tags()[kind])
        plugins.update(
            events.PluginTagToContent("hparams") if "hparams" in events._plugin_to_tag_to_content else ()
        )
    assert {"train/loss", "val/macro_f1", "test/macro_f1"} <= tags["scalars"]
    assert "test/confusion_matrix" in tags["images"]
    assert any(tag.startswith("test/samples") for tag in tags["tensors"])
    assert "_hparams_/session_end_info" in plugins
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_adapter_answers_in_peft_as_it_was_tested(finished: tuple[Path, str], place: Path) -> None:
    """The test split, answered again with nothing but PEFT and transformers."""
    folder, _ = finished
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    lm = AutoModelForCausalLM.from_pretrained(place / config["base_model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(place / "lm")
    peft = PeftModel.from_pretrained(lm, str(folder / "adapter")).eval()

    from ptlit.data import ClassificationData

    path = str(place / "tweets.csv")
    data = ClassificationData(tokenizer=tokenizer, path=path, template="{text}", max_length=64)
    data.setup()
    right = 0
    for row in data.rows["test"]:
        scores = []
        for ids in data.label_words.token_ids:
            text = tokenizer(row["text"])["input_ids"]
            logits = peft(input_ids=torch.tensor([[*text, *ids]])).logits[0, -len(ids) - 1 : -1]
            scores.append(float(logits.log_softmax(-1)[range(len(ids)), list(ids)].sum().detach()))
        right += scores.index(max(scores)) == row["label"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert right / len(data.rows["test"]) == pytest.approx(metrics["test/accuracy"])


def test_the_same_command_gives_the_same_numbers(finished: tuple[Path, str], place: Path) -> None:
    again = run(place, "experiment=ptuning_lstm", "trainer.max_steps=30", "hydra.run.dir=run2")
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((place / name / "metrics.json").read_text()) for name in ("run1", "run2"))
    assert without_timings(first) == without_timings(second)


def test_a_sweep_on_two_processes_a_job_goes_on_after_a_failure(place: Path) -> None:
    sweep = run(
        place,
        "-m",
        "experiment=prompt_tuning",
        "trainer=ddp",
        "trainer.max_steps=6",
        "prompt.num_virtual_tokens=230,3",  # 230 leave too little room for the text
        "hydra.sweep.dir=sweep",
    )
    assert sweep.returncode == 1
    assert (
        "prompt.num_virtual_tokens=230 and data.max_length=64 together exceed the 256 tokens" in sweep.stderr
    )
    folders = {
        path.parent.name: json.loads(path.read_text()) for path in (place / "sweep").glob("*/metrics.json")
    }
    assert list(folders) == ["prompt.num_virtual_tokens=3"]
    assert (place / "sweep" / "prompt.num_virtual_tokens=3" / "checkpoints" / "last.ckpt").is_file()
    metrics = folders["prompt.num_virtual_tokens=3"]
    assert metrics["speed/examples_per_second"] > 0
    assert 0 <= metrics["test/macro_f1"] <= 1
    assert (
        place / "sweep" / "prompt.num_virtual_tokens=3" / "adapter" / "adapter_model.safetensors"
    ).is_file()
    assert "failed" in sweep.stdout
    curves = (place / "sweep" / "prompt.num_virtual_tokens=3" / "metrics.csv").read_text()
    assert "train/loss" in curves and "val/macro_f1" in curves


def test_two_processes_that_are_commands_of_their_own_learn_the_same_as_spawned_ones(place: Path) -> None:
    """As SLURM begins them, and Lightning's own ddp. One of them says, judges and writes what there is."""
    words = ["experiment=prompt_tuning", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    found = {}
    for name, ways in {
        "spawned": ["trainer=ddp"],
        "launched": ["trainer=ddp", "trainer.strategy=ddp"],
    }.items():
        done = run(place, *words, *ways, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "sync_dist" not in done.stderr
        assert [done.stdout.count(said) for said in ("run folder", "on the test split")] == [2, 1]
        found[name] = without_timings(json.loads((place / name / "metrics.json").read_text()))
    assert found["spawned"] == found["launched"]


def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_goes_on_as_if_nothing_had_happened(
    finished: tuple[Path, str], place: Path
) -> None:
    words = ["experiment=ptuning_lstm", "trainer.max_steps=30"]
    process = subprocess.Popen(
        command(*words, "hydra.run.dir=cut"),
        cwd=place,
        env=OFFLINE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    )
    deadline = time.monotonic() + 120
    while not (place / "cut" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "resume=" in said
    assert not (place / "cut" / "metrics.json").exists()

    resumed = run_as_said(place, "resume=cut")
    assert resumed.returncode == 0, resumed.stderr
    whole, rest = (
        torch.load(place / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("run1", "cut")
    )
    assert all(torch.equal(whole[key], rest[key]) for key in whole)
    first, second = (json.loads((place / name / "metrics.json").read_text()) for name in ("run1", "cut"))
    assert without_timings(first) == without_timings(second)
    again = run_as_said(place, "resume=cut")
    assert again.returncode == 1
    assert "that run is finished" in again.stderr


def test_sigterm_leaves_a_checkpoint_and_is_no_success(place: Path) -> None:
    process = subprocess.Popen(
        command("experiment=prompt_tuning", "trainer.max_steps=5000", "hydra.run.dir=stopped"),
        cwd=place,
        env=OFFLINE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (place / "stopped" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "python -m ptlit.train resume=" in said
    assert not (place / "stopped" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.name_or_path=no_such_lm"], "model.name_or_path=no_such_lm could not be loaded"),
        (["prompt.num_virtual_tokens=400"], "prompt.num_virtual_tokens=400"),
        (["data.path=nothing.csv"], "data.path=nothing.csv: there is no such file."),
    ],
)
def test_mistakes_found_late_are_one_sentence_too(place: Path, words: list[str], sentence: str) -> None:
    failed = run(place, *words, "hydra.run.dir=failed")
    assert failed.returncode == 1
    assert sentence in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "Traceback" not in failed.stderr
    assert not (place / "failed").exists()
