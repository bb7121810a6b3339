"""A search: its trials, its record, its end; and that it goes on where it was."""

import csv
import json
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from runs import TRAINING, call
from test_config import composed

from ptlit.command import command
from ptlit.mistake import UserMistake
from ptlit.overrides import preflight
from ptlit.train import main as train_main

ran: list[int] = []  # the trials that `run` was given
stopped_at: set[int] = set()


def run(cfg: DictConfig) -> float:
    """Stands in for training: best at a learning rate of 0.01, and never with two virtual tokens."""
    number = HydraConfig.get().job.num
    ran.append(number)
    if number in stopped_at:
        raise KeyboardInterrupt
    if cfg.prompt.num_virtual_tokens == 2:
        raise UserMistake("Two is not a length.")
    return -abs(math.log10(cfg.optim.lr) + 2)


stub = command("train", run)
LR = "optim.lr=tag(log, interval(0.0001, 1))"


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., list[int]]:
    def search(*words: str, folder: str = "s") -> list[int]:
        """The numbers of the trials that were run."""
        ran.clear()
        folder = f"hydra.sweep.dir={folder}"
        call(tmp_path, stub, "-m", "experiment=prompt_tuning", "hydra/sweeper=search", folder, *words)
        return list(ran)

    return search


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def rates(folder: Path) -> dict[int, float]:
    """What the trials were run with, told by Hydra's own notes."""
    return {
        int(path.parent.parent.name): yaml.safe_load(path.read_text())["optim"]["lr"]
        for path in folder.glob("*/.hydra/config.yaml")
    }


def without_timings(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {k: v for k, v in metrics.items() if not k.startswith(("speed/", "memory/", "seconds/"))}


def test_a_search_whole(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The best is that of the highest score on val, and the command that ends the search trains it again."""
    words = [word for word in TRAINING if not word.startswith(("optim.lr", "trainer.max_steps"))]
    words += [f"model.name_or_path={place}/lm", "experiment=prefix_tuning", "sweep=defaults"]
    words += ["trainer.max_steps=4", "trainer.val_check_interval=4", "hydra.sweep.dir=searched"]
    call(place, train_main, "-m", *words, "hydra.sweeper.n_trials=3")
    said = capfd.readouterr().out.splitlines()[-1]
    folder = place / "searched"
    scores = [without_timings(folder / str(number))["val/macro_f1"] for number in range(3)]
    best = table(folder)[0]
    assert len(table(folder)) == 3 and len(set(rates(folder).values())) == 3
    assert float(best["val/macro_f1"]) == max(scores) == scores[int(best["trial"])]
    assert not [name for name in without_timings(folder / "0") if name.startswith("test/")]
    first = yaml.safe_load((folder / "0" / "config.yaml").read_text())
    assert first["optim"]["lr"] == composed("experiment=prefix_tuning").optim.lr
    assert first["schedule"]["name"] == "linear"
    assert f"optim.lr={best['optim.lr']} schedule={best['schedule']} " in said

    prefix = "python -m ptlit.train "
    assert said.startswith(prefix)
    call(place, train_main, *shlex.split(said.removeprefix(prefix)), "hydra.run.dir=best_again")
    again = without_timings(place / "best_again")
    assert {name: again[name] for name in without_timings(folder / best["trial"])} == without_timings(
        folder / best["trial"]
    )
    assert "test/macro_f1" in again

    # Killed before the last trial was recorded: it goes on from its checkpoint, to the same end.
    record = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(record[:-1]))
    before = without_timings(folder / "2"), table(folder)
    call(place, train_main, "-m", *words, "hydra.sweeper.n_trials=3")
    assert "resume='searched/2'" in yaml.safe_load((folder / "2" / ".hydra" / "overrides.yaml").read_text())
    kept = [{key: value for key, value in row.items() if key != "seconds/fit"} for row in table(folder)]
    assert without_timings(folder / "2") == before[0]
    assert kept == [{k: v for k, v in row.items() if k != "seconds/fit"} for row in before[1]]


def test_the_record_is_a_study_of_optuna(search: Callable[..., list[int]], tmp_path: Path) -> None:
    assert search(LR, "hydra.sweeper.n_trials=4") == list(range(4))
    (backend,) = (JournalFileBackend(str(path)) for path in (tmp_path / "s").glob("*.jsonl"))
    study = optuna.load_study(study_name=None, storage=JournalStorage(backend))
    ran_with = rates(tmp_path / "s")
    assert {each.number: each.params["optim.lr"] for each in study.trials} == ran_with
    scores = {number: -abs(math.log10(rate) + 2) for number, rate in ran_with.items()}
    assert [int(row["trial"]) for row in table(tmp_path / "s")] == sorted(scores, key=lambda n: -scores[n])
    assert study.best_trial.value == max(scores.values())


def test_stopped_and_said_again(search: Callable[..., list[int]], tmp_path: Path) -> None:
    assert search(LR, "hydra.sweeper.n_trials=4", folder="whole") == list(range(4))
    stopped_at.add(2)
    try:
        with pytest.raises(SystemExit) as end:
            search(LR, "hydra.sweeper.n_trials=3")
    finally:
        stopped_at.clear()
    assert end.value.code == 130
    assert search(LR, "hydra.sweeper.n_trials=4") == [2, 3]
    assert search(LR, "hydra.sweeper.n_trials=4") == []
    assert rates(tmp_path / "s") == rates(tmp_path / "whole")
    assert search(LR, "hydra.sweeper.n_trials=2", "hydra.sweeper.seed=1", folder="other") == [0, 1]
    assert rates(tmp_path / "other")[1] not in rates(tmp_path / "whole").values()


def test_the_first_trial_is_what_one_has(search: Callable[..., list[int]], tmp_path: Path) -> None:
    """As far as it is among what is searched; the rest is proposed."""
    search(LR, "schedule=linear,cosine", "optim.betas=[0.8,0.9],[0.9,0.999]", "hydra.sweeper.n_trials=1")
    (row,) = table(tmp_path / "s")
    rate = str(composed("experiment=prompt_tuning").optim.lr)
    assert (row["optim.lr"], row["schedule"], row["optim.betas"]) == (rate, "linear", "[0.9,0.999]")
    words = ["schedule=cosine,constant", "optim.lr=0.02", "schedule.num_warmup_steps=range(0,20,5)"]
    search(*words, "hydra.sweeper.n_trials=1", folder="t")
    (row,) = table(tmp_path / "t")
    assert row["schedule"] in ("cosine", "constant") and row["schedule.num_warmup_steps"] == "0"
    search("schedule.num_warmup_steps=range(4,20,4)", "hydra.sweeper.n_trials=1", folder="u")
    assert int(table(tmp_path / "u")[0]["schedule.num_warmup_steps"]) % 4 == 0


def test_a_failed_trial_is_one_of_them(
    search: Callable[..., list[int]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = "prompt.num_virtual_tokens=int(interval(2,3))"
    assert search(LR, tokens, "hydra.sweeper.n_trials=5", "hydra.sweeper.max_batch_size=4") == list(range(5))
    rows = table(tmp_path / "s")
    failed = [row["status"] == "failed" for row in rows]
    assert failed == sorted(failed) and 0 < sum(failed) < 5
    assert failed == [row["prompt.num_virtual_tokens"] == "2" for row in rows]
    assert f"{sum(failed)} of 5 trials failed" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="All 2 trials failed: see error.txt"):
        search(LR, "prompt.num_virtual_tokens=2", "hydra.sweeper.n_trials=2", folder="none")


def test_a_loss_is_minimised(search: Callable[..., list[int]], tmp_path: Path) -> None:
    search(LR, "callbacks=chat", "hydra.sweeper.n_trials=4")
    losses = [float(row["val/loss"]) for row in table(tmp_path / "s")]
    assert losses == sorted(losses) and len(losses) == 4


def test_every_kind_of_sweep(search: Callable[..., list[int]], tmp_path: Path) -> None:
    words = ["prompt.num_virtual_tokens=range(10,3,-3)", "optim.weight_decay=range(0,0.5,0.25)"]
    words += ["optim.betas=choice([0.9,0.99],[0.8,0.9])", "schedule=glob(*,exclude=cosine)"]
    words += ["seed=shuffle(1,2,3)", "optim.lr=interval(0.01,0.02)", "data.subset=airline"]
    assert len(search(*words, "hydra.sweeper.n_trials=7")) == 7
    assert search(*words, "hydra.sweeper.n_trials=8") == [7]
    rows = table(tmp_path / "s")
    found = {key: {row[key] for row in rows} for key in rows[0]}
    assert found["prompt.num_virtual_tokens"] <= {"4", "7", "10"}
    assert {float(each) for each in found["optim.weight_decay"]} == {0, 0.25}
    assert found["optim.betas"] == {"[0.9,0.99]", "[0.8,0.9]"}
    assert found["schedule"] == {"constant", "linear"} and found["seed"] == {"1", "2", "3"}
    assert all(0.01 <= float(rate) <= 0.02 for rate in found["optim.lr"])


def test_one_search_a_folder_and_one_process_at_a_time(
    search: Callable[..., list[int]], tmp_path: Path
) -> None:
    search(LR, "hydra.sweeper.n_trials=1")
    with pytest.raises(SystemExit, match=r"holds another search \(without seed=3\): give hydra.sweep.dir="):
        search(LR, "seed=3", "hydra.sweeper.n_trials=2")
    held = FileLock(tmp_path / "s" / ".trials.jsonl.lock")
    with held, pytest.raises(SystemExit, match="another process is searching with it just now"):
        search(LR, "hydra.sweeper.n_trials=2")
    assert ran == []


def test_a_record_of_ones_choice(search: Callable[..., list[int]], tmp_path: Path) -> None:
    search(LR, "hydra.sweeper.n_trials=2", "hydra.sweeper.storage=kept/lr.jsonl")
    shutil.rmtree(tmp_path / "s")
    assert search(LR, "hydra.sweeper.n_trials=3", "hydra.sweeper.storage=kept/lr.jsonl", folder="new") == [2]
    assert len(table(tmp_path / "new")) == 3


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (["optim.lr=tag(log, interval(1e-3, 1))"], []),
        (["sweep=defaults", "optim.lr=0.01", "+trainer.deterministic=true,false"], []),
        (
            ["optim.lr=interval(0.1, 0.01)"],
            ["optim.lr=interval(0.1, 0.01): an interval goes from a number to a higher one."],
        ),
        (
            ["optim.lr=tag(log, interval(0, 1))"],
            [
                "optim.lr=tag(log, interval(0, 1)): a logarithmic interval begins above 0.",
                "optim.lr=0.0 must be above 0.",
            ],
        ),
        (
            ["optim.lr=tag(lgo, interval(0.1, 1))"],
            ["optim.lr=tag(lgo, interval(0.1, 1)): 'lgo' is no tag here; there is tag(log, interval(...))."],
        ),
        (["optim.lr=1,2", "seed=range(3,1)"], ["seed=range(3,1) gives no value."]),
        (
            ["optim.lrr=interval(0.1, 1)"],
            ["optim.lrr is not a key of this config (optim=adamw): did you mean optim.lr?"],
        ),
        (
            ["prompt.num_virtual_tokens=interval(1, 5)"],
            [
                "prompt.num_virtual_tokens=1.0 must be a whole number.",
                "prompt.num_virtual_tokens=5.0 must be a whole number.",
            ],
        ),
        (["seed=1,2", "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials=0 must be 1 or more."]),
        (["seed=1,2", "hydra.sweeper.n_trials=ten"], ["hydra.sweeper.n_trials=ten must be a whole number."]),
        (
            ["seed=1,2", "hydra.sweeper.n_trails=9"],
            ["hydra.sweeper.n_trails is not a key of this config: did you mean hydra.sweeper.n_trials?"],
        ),
        (["seed=1"], ["Nothing is searched: give a key a range, such as optim.lr='interval(0.001, 0.1)'."]),
        (
            ["seed=1,2", "callbacks=default,chat"],
            [
                "A search needs one score, and "
                "these runs return val/loss (min) and val/macro_f1 (max): search them apart."
            ],
        ),
        (
            ["hydra/sweeper=basic", "optim.lr=interval(0.1, 1)"],
            ["optim.lr=interval(0.1, 1) is for a search: add hydra/sweeper=search."],
        ),
    ],
)
def test_a_mistake_is_named_before_anything_loads(words: list[str], sentences: list[str]) -> None:
    try:
        preflight(["-m", "hydra/sweeper=search", *words])
        said = []
    except UserMistake as mistake:
        said = str(mistake).splitlines()
    assert said == sentences


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptlit.trials.find_spec", lambda name: None)
    with pytest.raises(UserMistake, match=r"^A search needs a package more: pip install optuna\.$"):
        preflight(["-m", "sweep=defaults"])
