"""A run that is resumed elsewhere, with other settings, or by mistake: what it had learned stays."""

import csv
import json
import resource
import shlex
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from runs import TRAINING, call, train_at

from ptlit.callbacks.last_checkpoint import LastCheckpoint
from ptlit.evaluate import main as evaluate
from ptlit.resume import resumed
from ptlit.train import main as train

EARLY_BY = "+callbacks.early.monitor=val/perplexity"
STEEP = ("optim.lr=1", "schedule=constant", "schedule.num_warmup_steps=0", "trainer.val_check_interval=3")


@pytest.fixture(scope="module")
def first(place: Path) -> Path:
    """Not to be changed: copy it."""
    by_loss = ("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min")
    words = ("experiment=prompt_tuning", "callbacks.averaging=null", "trainer.max_steps=12", *by_loss, *STEEP)
    return train_at(place, "first", *words)


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return found


def measured(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return found


def said_by(place: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        call(place, train, *words)
    return str(end.value)


def validations(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]


def test_a_run_that_was_moved_keeps_its_best(place: Path, first: Path) -> None:
    best, copied = checkpoint(first, "best"), Path(shutil.copytree(first, place / "copied"))
    moved = Path(shutil.move(copied, place / "moved"))
    call(place, train, "resume=moved", "trainer.max_steps=18", "optim.lr=500")
    assert min(validations(moved)) > best["validated"]["val/loss"]  # else this would show nothing
    assert checkpoint(moved, "best")["global_step"] == best["global_step"]
    assert measured(moved)["val/loss"] == best["validated"]["val/loss"]
    assert not any("first" in path for path in best_files(moved))
    # the name under which Lightning's own callback, in runs of before, kept what was best
    assert any(key.startswith("ModelCheckpoint{") for key in checkpoint(moved, "last")["callbacks"])


def best_files(folder: Path) -> list[str]:
    (state,) = [each for key, each in checkpoint(folder, "last")["callbacks"].items() if "monitor" in key]
    return [state["best_model_path"], *state["best_k_models"]]


def test_it_goes_on_in_another_folder_with_its_best(place: Path, first: Path) -> None:
    call(place, train, "resume=first", "trainer.max_steps=13", "hydra.run.dir=elsewhere")
    best = {name: value.tolist() for name, value in checkpoint(first, "best")["state_dict"].items()}
    there = checkpoint(place / "elsewhere", "best")["state_dict"]
    assert {name: value.tolist() for name, value in there.items()} == best
    call(place, evaluate, "run=elsewhere")
    assert checkpoint(first, "last")["global_step"] == 12  # the run itself is as it was


def test_settings_of_the_optimizer_are_taken(place: Path, first: Path) -> None:
    shutil.copytree(first, place / "decays")
    words = ("optim.weight_decay=0.5", "optim.betas=[0.5,0.9]", "optim.lr=0.5", "+optim.amsgrad=true")
    call(place, train, "resume=decays", "trainer.max_steps=14", *words)
    (state,) = checkpoint(place / "decays", "last")["optimizer_states"]
    group = state["param_groups"][0]
    assert (group["weight_decay"], list(group["betas"]), group["lr"]) == (0.5, [0.5, 0.9], 0.5)


def test_a_run_of_before_noted_its_rate_alone(place: Path, first: Path) -> None:
    last = Path(shutil.copytree(first, place / "noted")) / "checkpoints" / "last.ckpt"
    kept = torch.load(last, weights_only=True)
    del kept["optimizer_settings"]
    torch.save(kept | {"learning_rates": [1.0]}, last)
    call(place, train, "resume=noted", "trainer.max_steps=14", "optim.lr=0.25")
    (state,) = torch.load(last, weights_only=True)["optimizer_states"]
    assert state["param_groups"][0]["lr"] == 0.25


def test_a_full_disk_costs_nothing_that_was_kept(
    place: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands in for it: a limit on how long a file may be."""
    last = Path(shutil.copytree(trained, place / "narrow")) / "checkpoints" / "last.ckpt"
    before, limits = last.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        said = said_by(place, "resume=narrow", "trainer.max_steps=33")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said.startswith("A file could not be written whole (file too large): make room")
    assert "To go on: python -m ptlit.train resume=" in capsys.readouterr().out
    assert last.read_bytes() == before
    call(place, train, "resume=narrow", "trainer.max_steps=33")
    assert checkpoint(place / "narrow", "last")["global_step"] == 33


def test_what_was_refused_is_forgotten(place: Path, first: Path) -> None:
    """The next resume=... is of the run, not of the attempt."""
    folder = Path(shutil.copytree(first, place / "asked"))
    shutil.copytree(first, place / "there")
    kept = [folder / ".hydra", folder / "config.yaml", folder / "metrics.csv", place / "there" / ".hydra"]
    notes = [path for each in kept for path in (each.glob("*.yaml") if each.is_dir() else [each])]
    before = {path: path.read_bytes() for path in notes}
    for words, sentence in (
        (
            ["optim=adafactor", "trainer.max_steps=14"],
            "torch.optim.Adafactor cannot go on from what that remembers",
        ),
        (["prompt.num_virtual_tokens=5", "trainer.max_steps=14"], "Leave out what changes the prompt"),
        (
            ["trainer.max_steps=10"],
            "has taken 12 steps and is finished; to go beyond it give trainer.max_steps",
        ),
    ):
        for place_of_run in ([], ["hydra.run.dir=there"]):
            said = said_by(place, "resume=asked", *words, *place_of_run)
            assert said.startswith("resume=asked") and sentence in said
            assert {path: path.read_bytes() for path in notes} == before
    call(place, train, "resume=asked", "trainer.max_steps=14")
    assert checkpoint(folder, "last")["global_step"] == 14


def test_what_it_began_from_may_be_gone(place: Path, first: Path) -> None:
    words = ("experiment=prompt_tuning", "prompt.init.from=origin", *STEEP)
    for name, steps in (("whole", 12), ("cut", 6)):
        shutil.copytree(first / "adapter", place / "origin")
        train_at(place, name, *words, f"trainer.max_steps={steps}")
        shutil.rmtree(place / "origin")
    call(place, train, "resume=cut", "trainer.max_steps=12")
    whole, cut = (checkpoint(place / name, "last")["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("epochs", [-1, 2])
def test_an_epoch_goes_on_where_it_was(place: Path, epochs: int) -> None:
    words = ("experiment=prompt_tuning", f"trainer.max_epochs={epochs}", "data.batch_size=16")
    whole = train_at(place, "epochs", *words, *STEEP, "trainer.max_steps=10")
    cut = train_at(place, "half_an_epoch", *words, *STEEP, "trainer.max_steps=4")
    call(place, train, "resume=half_an_epoch", "trainer.max_steps=10")
    one, other = (checkpoint(folder, "last")["state_dict"] for folder in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for folder in (whole, cut):
        shutil.rmtree(folder)


def test_a_folder_that_holds_a_run_is_no_place_for_another(place: Path, first: Path) -> None:
    folder = Path(shutil.copytree(first, place / "taken"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = said_by(place, *TRAINING, f"model.name_or_path={place}/lm", "hydra.run.dir=taken", "optim.lr=0.5")
    assert said == (
        "hydra.run.dir=taken holds a run: resume=taken goes on with it, another folder begins anew."
    )
    assert {path: path.read_bytes() for path in before} == before


def test_going_on_elsewhere_throws_no_other_run_away(place: Path, first: Path) -> None:
    """Nor what the same command has come to when it is said again, by a queue say."""
    other = Path(shutil.copytree(first, place / "other"))
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    further = ("resume=first", "trainer.max_steps=13")
    assert said_by(place, *further, "hydra.run.dir=other") == (
        "hydra.run.dir=other holds a run: resume=other goes on with it, another folder begins anew."
    )
    assert {path: path.read_bytes() for path in before} == before
    call(place, train, *further, "hydra.run.dir=further")
    assert "resume=further goes on with it" in said_by(place, *further, "hydra.run.dir=further")
    call(place, train, "-m", *further, "seed=1", "hydra.sweep.dir=each_further")
    (job,) = (place / "each_further").glob("*/")
    (job / "report" / "of_before.txt").touch()
    call(place, train, "-m", *further, "seed=1", "optim.lr=0.5", "hydra.sweep.dir=each_further")
    assert not (job / "report" / "of_before.txt").exists()
    assert checkpoint(job, "last")["global_step"] == 13


def test_a_job_of_a_sweep_goes_on_by_itself_and_the_sweep_knows(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "experiment=prompt_tuning", *TRAINING, "model.name_or_path=lm", "sweep=virtual_tokens"]
    words += ["seed=1,2", "test=false", "hydra.sweep.dir=halted"]
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", saved_and_interrupted)
        assert "130" in said_by(place, *words)
    job = place / "halted" / "seed=1"
    assert checkpoint(job, "last")["global_step"] < 10
    said = next(line for line in capsys.readouterr().out.splitlines() if "To go on: " in line)
    call(place, train, *shlex.split(said.partition("python -m ptlit.train ")[2]))
    assert checkpoint(job, "last")["global_step"] == 10
    assert not [name for name in measured(job) if name.startswith("test/")]
    assert said_by(place, f"resume={job}", "sweep=defaults", "trainer.max_steps=11") == (
        f"resume={job} goes on with one run, and sweep=... needs many: add -m."
    )
    ended = (job / "metrics.json").read_bytes()
    capsys.readouterr()
    call(place, train, *words)
    assert capsys.readouterr().out.count("It ended before") == 1
    assert (job / "metrics.json").read_bytes() == ended and measured(place / "halted" / "seed=2")
    call(place, train, f"resume={job}", "trainer.max_steps=11")  # another run than the sweep's from now on
    capsys.readouterr()
    call(place, train, *words)
    assert capsys.readouterr().out.count("It ended before") == 1
    assert checkpoint(job, "last")["global_step"] == 10


def saved_and_interrupted(self: LastCheckpoint, trainer: L.Trainer) -> None:
    trainer.save_checkpoint(self.path)
    raise KeyboardInterrupt


def test_what_was_refused_leaves_a_sweeps_notes(place: Path, first: Path) -> None:
    """Or the sweep, said again, would train a job that has ended."""
    folder = Path(shutil.copytree(first, place / "of_a_sweep"))
    notes = [folder / ".hydra" / "ended.json", folder / "error.txt"]
    for note in notes:
        note.write_text("{}")
    assert "holds a run" in said_by(place, "experiment=prompt_tuning", "hydra.run.dir=of_a_sweep")
    assert "cannot go on" in said_by(place, "resume=of_a_sweep", "optim=adafactor", "trainer.max_steps=14")
    assert [note.read_text() for note in notes] == ["{}", "{}"]


def test_a_job_that_a_sweep_begins_again_leaves_nothing_of_before(place: Path) -> None:
    words = ["-m", "experiment=prompt_tuning", *TRAINING, "model.name_or_path=lm", "hydra.sweep.dir=swept"]
    call(place, train, *words, "seed=1")
    job = place / "swept" / "0"
    (job / "report" / "of_before.txt").touch()
    before = {
        path: path.read_bytes() for path in job.rglob("*") if path.is_file() and ".hydra" not in path.parts
    }
    (place / "broken.csv").write_text("text,label\nlate again,bad\n,good\n")
    with pytest.raises(SystemExit):
        call(place, train, *words, "seed=1", "data.path=broken.csv")  # what only building finds
    assert {path: path.read_bytes() for path in before} == before
    call(place, train, *words, "seed=1", "trainer.max_steps=3")
    assert checkpoint(job, "last")["global_step"] == 3
    assert not list(job.glob("metrics.part*")) and not (job / "report" / "of_before.txt").exists()


def test_rows_that_it_was_taught_elsewhere_are_no_test(
    place: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("experiment=prompt_tuning", "trainer.max_steps=1", "hydra.run.dir=later")
    for start in (f"prompt.init.from={first}", f"prompt.init.from={first}/adapter", f"distill.run={first}"):
        for seed in (42, 43):
            capsys.readouterr()
            train_at(place, "later", *words, *STEEP, start, f"seed={seed}")
            said = "with seed=42 data.folds=null data.fold=null, so rows that are set aside here may be"
            assert (said in capsys.readouterr().out) == (seed == 43)
            shutil.rmtree(place / "later")


def test_own_texts_with_the_settings_of_others_are_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "data.path=tweets.csv is read with the template, instruction and limits of data=tweets"
    words = [f"model.name_or_path={place}/lm", "trainer.max_steps=1", "hydra.run.dir=settings"]
    for data in ("data=classification", "data=tweets"):
        call(place, train, *[data if word.startswith("data=") else word for word in TRAINING], *words)
        assert (note in capsys.readouterr().out) == (data == "data=tweets")
        shutil.rmtree(place / "settings")


def test_an_experiment_of_ones_own_is_found_again(place: Path) -> None:
    (place / "conf" / "experiment").mkdir(parents=True)
    mine = "# @package _global_\ndefaults:\n  - prompt_tuning\noptim:\n  lr: 0.25\n"
    (place / "conf" / "experiment" / "mine.yaml").write_text(mine)
    words = [word for word in TRAINING if not word.startswith("optim.lr")]
    folder = ["model.name_or_path=lm", "hydra.run.dir=own"]
    call(place, train, "--config-dir", "conf", "experiment=mine", *words, *folder)
    call(place, train, "resume=own", "trainer.max_steps=12")
    (state,) = checkpoint(place / "own", "last")["optimizer_settings"]
    assert checkpoint(place / "own", "last")["global_step"] == 12 and state["lr"] == 0.25


def test_a_run_is_judged_by_the_score_that_it_began_with(place: Path, first: Path) -> None:
    folder = Path(shutil.copytree(first, place / "judged"))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("monitor: val/loss", "monitor: val/ece"))
    saved = folder / ".hydra" / "overrides.yaml"
    saved.write_text("- experiment=prompt_tuning\n")  # it did not say by what
    words = resumed([f"resume={folder}", "trainer.max_steps=14"])
    assert {"callbacks.checkpoint.monitor='val/ece'", "callbacks.checkpoint.mode='min'"} <= set(words)
    words = resumed([f"resume={folder}", "trainer.max_steps=14", "callbacks.checkpoint.monitor=val/loss"])
    assert "callbacks.checkpoint.monitor='val/ece'" not in words


def test_its_files_are_found_from_any_folder(place: Path) -> None:
    """And not others that have the same names there."""
    begun, elsewhere = place / "where it's begun", place / "deeper" / "elsewhere"
    begun.mkdir()
    elsewhere.mkdir(parents=True)
    shutil.copy(place / "tweets.csv", begun)
    (elsewhere / "tweets.csv").write_text("text,label\nnot,bad\nthese,good\n")
    words = ("experiment=prompt_tuning", "model.name_or_path=../lm", f"hydra.run.dir={place}/afar")
    call(begun, train, *TRAINING, *words)
    call(elsewhere, train, f"resume={place}/afar", "trainer.max_steps=12")
    assert checkpoint(place / "afar", "last")["global_step"] == 12
    (begun / "tweets.csv").unlink()
    said = said_by(elsewhere, f"resume={place}/afar", "trainer.max_steps=14")
    assert said == f"data.path={begun}/tweets.csv: there is no such file."
    shutil.copy(place / "tweets.csv", elsewhere)
    call(elsewhere, train, f"resume={place}/afar", "trainer.max_steps=14", "data.path=tweets.csv")


def test_of_a_chat_templates_file_the_text_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    for said, kept, again in (
        ("mine.jinja", "{{ 'a' }}", "'{{ \\'a\\' }}'"),
        ("'{{ messages }}'", "{{ messages }}", "'{{ messages }}'"),
        ("mine.jinja", "\\${a}", "mine.jinja"),
        ("null", None, "null"),
    ):
        (tmp_path / ".hydra" / "overrides.yaml").write_text(json.dumps([f"data.chat_template={said}"]))
        (tmp_path / "config.yaml").write_text(json.dumps({"data": {"chat_template": kept}}))
        assert f"data.chat_template={again}" in resumed([f"resume={tmp_path}"])
        assert f"data.chat_template={again}" not in resumed([f"resume={tmp_path}", "data.chat_template=new"])


def test_a_folder_may_have_any_name(place: Path, first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    folder = Path(shutil.copytree(first, place / "it's a run=1"))
    call(place, train, "resume=it's a run=1", "trainer.max_steps=13")
    call(place, train, "resume=~/it's a run=1", "trainer.max_steps=14")
    assert checkpoint(folder, "last")["global_step"] == 14
    words = ["hydra.run.dir='it\\'s new'", "resume='it\\'s new'"]
    monkeypatch.chdir(place)
    assert resumed(words) == words[:1]


def test_one_folder_may_be_written_in_two_ways(place: Path) -> None:
    """As in a job that is queued again, which begins there or goes on."""
    words = [f"hydra.run.dir={place}/queued", "resume=queued"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert resumed(words) == words[:1]


@pytest.mark.parametrize(
    "words",
    [
        ("data.limit=32", "trainer.accumulate_grad_batches=3", "trainer.max_steps=6"),
        ("+trainer.limit_train_batches=2", "trainer.max_steps=-1", "trainer.max_epochs=3"),
        ("+trainer.limit_train_batches=0.2", "trainer.max_steps=7"),
    ],
)
def test_a_short_run_is_validated_at_its_end(place: Path, words: tuple[str, ...]) -> None:
    folder = train_at(place, "short", "experiment=prompt_tuning", "trainer.val_check_interval=50", *words)
    assert checkpoint(folder, "best")["global_step"] == checkpoint(folder, "last")["global_step"]
    assert validations(folder) == [pytest.approx(measured(folder)["val/loss"])]
    shutil.rmtree(folder)


def test_epochs_end_a_run_that_is_told_no_steps(place: Path) -> None:
    words = [word for word in TRAINING if not word.startswith("trainer.max_steps")]
    words += ["experiment=prompt_tuning", "model.name_or_path=lm", "data.batch_size=1"]
    call(place, train, *words, "trainer.max_epochs=6", "hydra.run.dir=by_epochs")  # of 96 rows
    folder = place / "by_epochs"
    assert checkpoint(folder, "last")["global_step"] == 6 * 96  # beyond the 500 of the experiment
    assert len(validations(folder)) == 6
    call(place, train, "resume=by_epochs", "trainer.max_epochs=7")
    assert checkpoint(folder, "last")["global_step"] == 7 * 96
    call(place, train, "resume=by_epochs", "trainer.max_steps=700")
    assert checkpoint(folder, "last")["global_step"] == 700


@pytest.mark.parametrize(
    "begun", [["trainer.max_steps=5", "trainer.val_check_interval=5"], ["trainer.max_epochs=1"]]
)
def test_a_resumed_run_is_told_epochs(place: Path, monkeypatch: pytest.MonkeyPatch, begun: list[str]) -> None:
    """Bit for bit, where it was to be so long from the beginning."""
    words = [word for word in TRAINING if not word.startswith("trainer.max_steps")]
    words += ["experiment=prompt_tuning", "model.name_or_path=lm", "schedule=constant"]
    words += ["schedule.num_warmup_steps=0", "data.batch_size=16"]
    call(place, train, *words, *begun, "hydra.run.dir=for_a_while")
    call(place, train, "resume=for_a_while", "trainer.max_epochs=2")
    call(place, train, *words, "trainer.max_epochs=2", "hydra.run.dir=two_epochs")
    one, other = (checkpoint(place / name, "last") for name in ("for_a_while", "two_epochs"))
    assert one["global_step"] == other["global_step"] == 12
    assert all(
        torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in other["state_dict"]
    )
    said = said_by(place, "resume=for_a_while", "trainer.max_epochs=1")
    assert said.endswith("come to epoch 2 and is finished; to go beyond it give trainer.max_epochs above 2.")
    for name in ("for_a_while", "two_epochs"):
        shutil.rmtree(place / name)


def test_what_was_never_validated_is_best_at_its_end(place: Path) -> None:
    folder = train_at(place, "blind", "experiment=prompt_tuning", "+trainer.limit_val_batches=0")
    best, last = (checkpoint(folder, name)["state_dict"] for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in best)
    call(place, train, "resume=blind", "trainer.max_steps=13")
    assert checkpoint(folder, "best")["global_step"] == 13
    call(place, train, "resume=blind", "trainer.max_steps=14")
    assert checkpoint(folder, "best")["global_step"] == 14
    call(place, evaluate, "run=blind")
    judged = json.loads((folder / "evaluation" / "test" / "metrics.json").read_text())
    assert judged["test/loss"] == measured(folder)["test/loss"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["+callbacks.checkpoint.save_top_k=3"],
            "callbacks.checkpoint.save_top_k is not an option of BestCheckpoint",
        ),
        (
            ["callbacks.checkpoint._target_=lightning.pytorch.callbacks.ModelCheckpoint"],
            "callbacks.checkpoint must be a ptlit.callbacks.best_checkpoint.BestCheckpoint",
        ),
        (["callbacks.checkpoint.monitor=null"], "callbacks.checkpoint.monitor=null must be text."),
        (
            ["callbacks.checkpoint.monitor=train/loss"],
            "callbacks.checkpoint.monitor=train/loss is not measured on this data, only val/accuracy, "
            "val/macro_f1, val/loss, val/ece, val/f1_bad, val/f1_good: choose one of these, or give "
            "callbacks=default.",
        ),
        (
            ["+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping", EARLY_BY],
            "callbacks.early.monitor=val/perplexity is not measured on this data",
        ),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval=0 must be above 0."),
        (
            ["trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=50", "data.batch_size=8"],
            "trainer.val_check_interval=50 is more than the 12 batches of an epoch: with "
            "trainer.check_val_every_n_epoch give trainer.val_check_interval=1.0, which is once an epoch.",
        ),
        (["schedule.name=reduce_lr_on_plateau"], "schedule: ReduceLROnPlateau waits for validations"),
    ],
)
def test_what_no_training_can_do_is_said(place: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as end:
        train_at(place, "never", "experiment=prompt_tuning", *words)
    assert str(end.value).startswith(sentence)


def test_schedules_of_pytorch_and_none(place: Path) -> None:
    mine = (
        "schedule._target_=torch.optim.lr_scheduler.StepLR",
        "+schedule.step_size=4",
        "+schedule.gamma=0.5",
    )
    theirs = ("~schedule.name", "~schedule.num_warmup_steps")
    folder = train_at(place, "by_steps", "experiment=prompt_tuning", *mine, *theirs)
    (schedule,) = checkpoint(folder, "last")["lr_schedulers"]
    assert schedule["_last_lr"] == [0.05 / 4]
    folder = train_at(place, "steady", "experiment=prompt_tuning", "~schedule", "~logger")
    (optimizer,) = checkpoint(folder, "last")["optimizer_states"]
    assert optimizer["param_groups"][0]["lr"] == 0.05 and measured(folder)


def test_any_score_of_val_may_judge(place: Path) -> None:
    words = ("callbacks.checkpoint.monitor=val/ece", "callbacks.checkpoint.mode=min", *STEEP)
    folder = train_at(place, "calibrated", "experiment=prompt_tuning", *words)
    with (folder / "metrics.csv").open() as file:
        errors = [float(row["val/ece"]) for row in csv.DictReader(file) if row["val/ece"]]
    assert measured(folder)["val/ece"] == pytest.approx(min(errors)) and len(errors) == 3
