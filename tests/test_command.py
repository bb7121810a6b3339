"""Around a command's work: exit codes, sentences for mistakes, no empty folders, sweeps that go on."""

import csv
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ptlit.command import command
from ptlit.mistake import UserMistake

Call = Callable[..., None]


def run(cfg: DictConfig) -> float:
    """Stands in for training; its fate is decided by the number of virtual tokens."""
    tokens = cfg.prompt.num_virtual_tokens
    folder = Path(HydraConfig.get().runtime.output_dir)
    if tokens == 7:
        raise UserMistake("Seven is not a length.")
    if tokens == 8:
        raise RuntimeError("eight")
    if tokens == 9:
        raise KeyboardInterrupt
    if tokens == 10:  # as Lightning does
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    if tokens == 11:
        (folder / "checkpoint").write_text("half a run")
        raise UserMistake("Eleven came too late.")
    measured = {"test/macro_f1": tokens / 100, "val/loss": 0.5, "seconds/fit": 12.0}
    measured["parameters/trainable"] = 9
    (folder / "metrics.json").write_text(json.dumps(measured))
    return tokens / 100


main = command("train", run)
asked_of_a_run = command("evaluate", lambda cfg: None)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """Calls the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def call(*argv: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train", *argv])
        main()

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)


def run_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.rglob(".hydra"))


def test_a_run_ends_well(call: Call, tmp_path: Path) -> None:
    call("experiment=prompt_tuning")
    (folder,) = run_folders(tmp_path)
    assert folder.parent == tmp_path / "outputs" / "prompt_tuning"
    assert {path.name for path in folder.iterdir()} == {".hydra", "metrics.json"}


def test_a_folder_of_ones_choice(call: Call, tmp_path: Path) -> None:
    call(f"hydra.run.dir={tmp_path}/somewhere/run1")
    assert run_folders(tmp_path) == [tmp_path / "somewhere" / "run1"]


def test_a_mistake_found_by_the_run_leaves_no_folder(call: Call, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^Seven is not a length\.$"):
        call("prompt.num_virtual_tokens=7")
    assert run_folders(tmp_path) == []


def test_what_was_written_is_kept(call: Call, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Eleven came too late"):
        call("prompt.num_virtual_tokens=11")
    assert len(run_folders(tmp_path)) == 1


def test_an_older_folder_is_kept(call: Call, tmp_path: Path) -> None:
    call("hydra.run.dir=run1")
    (tmp_path / "run1" / "metrics.json").unlink()
    with pytest.raises(SystemExit):
        call("hydra.run.dir=run1", "prompt.num_virtual_tokens=7")
    assert (tmp_path / "run1" / ".hydra").is_dir()


@contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """Another process, which is killed in the end."""
    program = (
        "import sys, pathlib; from ptlit.own_folder import own_folder\n"
        "with own_folder(pathlib.Path(sys.argv[1]), ''): print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdin and other.stdout and other.stdout.readline()
    try:
        yield
    finally:
        other.kill()
        other.communicate()
    assert (folder / ".lock").exists()


def test_one_run_a_folder_at_a_time(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of two that began in the same second; one that was killed is no longer there."""
    one, sweep = tmp_path / "one", ("-m", "prompt.num_virtual_tokens=5,6", "hydra.sweep.dir=sweep")
    job = tmp_path / "sweep" / "prompt.num_virtual_tokens=5"
    for folder, words, key in (
        (one, ["hydra.run.dir=one"], "hydra.run.dir"),
        (tmp_path / "sweep", sweep, "hydra.sweep.dir"),
        (job, sweep, "hydra.sweep.dir"),
    ):
        noted = sorted(folder.glob(".hydra/*"))
        with at_work_in(folder):
            with pytest.raises(SystemExit, match="another run is at work there just now") as end:
                call(*words)
            assert str(end.value).endswith(f"or give another {key}.")
            assert sorted(folder.glob(".hydra/*")) == noted and not (folder / "error.txt").exists()
        call(*words)
        assert not (folder / ".lock").exists()
    with at_work_in(one), monkeypatch.context() as patch:
        patch.setattr("lightning.pytorch.utilities.rank_zero.rank_zero_only.rank", 1)  # of the same run
        call("hydra.run.dir=one")


def test_it_is_the_folder_of_the_run_that_is_held(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def look(cfg: DictConfig) -> None:
        held.append((Path(HydraConfig.get().runtime.output_dir) / ".lock").is_file())

    for words in ([], ["-m"], ["-m", "experiment=prompt_tuning,ptuning_mlp"]):
        monkeypatch.setattr(sys, "argv", ["train", *words])
        command("train", look)()
    assert held == [True] * 4


def test_a_command_that_makes_no_run_leaves_a_folder_as_it_is(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a sweep train again the job in whose folder it was said."""
    sweep = ("-m", "prompt.num_virtual_tokens=5,6", f"hydra.sweep.dir={tmp_path}/sweep")
    call(*sweep)
    job = tmp_path / "sweep" / "prompt.num_virtual_tokens=5"
    (job / "error.txt").write_text("mine")
    before = {path: path.read_bytes() for path in job.rglob("*") if path.is_file()}
    monkeypatch.chdir(job)
    monkeypatch.setattr(sys, "argv", ["evaluate", "run=."])
    asked_of_a_run()
    assert {path: path.read_bytes() for path in job.rglob("*") if path.is_file()} == before


def test_a_mistake_on_the_command_line_starts_nothing(call: Call, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="did you mean optim.lr") as end:
        call("lr=0.1", "seed=-1")
    assert len(str(end.value).splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_any_other_exception_keeps_its_traceback(call: Call, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="eight"):
        call("prompt.num_virtual_tokens=8")
    assert run_folders(tmp_path) == []


@pytest.mark.parametrize(("place", "reason"), [("afile", "file exists"), ("afile/x", "not a directory")])
def test_a_folder_that_cannot_be_made(call: Call, tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "afile").write_text("mine")
    with pytest.raises(SystemExit) as end:
        call(f"hydra.run.dir={place}")
    assert f"{reason}, so choose another place" in str(end.value) and len(str(end.value).splitlines()) == 1
    assert (tmp_path / "afile").read_text() == "mine"


@pytest.mark.parametrize("tokens", [9, 10])
def test_interrupted(call: Call, tokens: int) -> None:
    with pytest.raises(SystemExit) as end:
        call(f"prompt.num_virtual_tokens={tokens}")
    assert end.value.code == 130


def test_a_sweep_goes_on_after_a_failed_job(
    call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        call("-m", "prompt.num_virtual_tokens=5,7,8,6", "trainer.max_steps=3", "hydra.sweep.dir=sweep")
    assert end.value.code == 1
    names = [f"prompt.num_virtual_tokens={tokens}" for tokens in (5, 6, 7, 8)]
    assert [folder.name for folder in run_folders(tmp_path / "sweep")] == names
    assert (tmp_path / "sweep" / names[2] / "error.txt").read_text() == "Seven is not a length.\n"
    assert "RuntimeError: eight" in (tmp_path / "sweep" / names[3] / "error.txt").read_text()
    out, err = capfd.readouterr()
    assert "Seven is not a length." in err and "2 of 4 jobs failed" in err and "Traceback" not in err
    assert "0.060" in out and "tensorboard --logdir sweep" in out
    assert "val/loss" not in out  # of all that was measured a screen has room for less
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "failed", "failed", "done"]
    assert [row["test/macro_f1"] for row in rows] == ["0.05", "", "", "0.06"]
    assert [row["val/loss"] for row in rows] == ["0.5", "", "", "0.5"]
    assert [row["parameters/trainable"] for row in rows] == ["9", "", "", "9"]


def test_a_sweep_said_again_runs_what_is_not_there_yet(
    call: Call, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of jobs that were interrupted, that failed, that are new, or that are not what they were."""

    def sweep(*values: int, words: tuple[str, ...] = ()) -> list[int]:
        """The virtual tokens of the jobs that ran."""
        for path in (tmp_path / "sweep").glob("*/metrics.json"):
            path.write_text(path.read_text().replace("}", ', "before": 1}'))
        with suppress(SystemExit):
            swept = f"prompt.num_virtual_tokens={','.join(map(str, values))}"
            call("-m", swept, "hydra.sweep.dir=sweep", *words)
        found = {path: json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/metrics.json")}
        return sorted(int(path.parent.name.split("=")[1]) for path in found if "before" not in found[path])

    assert sweep(5, 9, 6) == [5]  # 9 is interrupted, and ends the sweep
    capfd.readouterr()
    assert sweep(5, 7, 6) == [6]  # 7 fails
    out, err = capfd.readouterr()
    assert out.count("It ended before; to run it again, remove ") == 1 and "1 of 3 jobs failed" in err
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        assert [row["test/macro_f1"] for row in csv.DictReader(file)] == ["0.05", "", "0.06"]
    assert sweep(6, 5) == []
    assert sweep(5, 6, words=("seed=1",)) == [5, 6]
    assert sweep(5, 6) == [5, 6]
    (broken,) = (tmp_path / "sweep").glob("*=5/.hydra/ended.json")
    broken.write_text('{"score": 0.0')
    assert sweep(5, 6) == [5]


def test_a_sweep_named_in_conf(call: Call, tmp_path: Path) -> None:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      prompt.num_virtual_tokens: 2,3\n"
    (tmp_path / "conf" / "sweep" / "short.yaml").write_text(text)
    call("-m", "--config-dir", "conf", "sweep=short", "experiment=prompt_tuning,ptuning_mlp")
    names = [folder.name for folder in run_folders(tmp_path / "outputs" / "sweeps")]
    assert "experiment=prompt_tuning,prompt.num_virtual_tokens=2" in names and len(names) == 4


@pytest.mark.parametrize("value", ["a/b,c/d", f"{'x' * 200},y", "x,x"])
def test_values_that_cannot_name_a_folder(call: Call, tmp_path: Path, value: str) -> None:
    call("-m", f"data.path={value}", "hydra.sweep.dir=sweep")
    folders = run_folders(tmp_path / "sweep")
    assert len(folders) == 2
    assert all(folder.parent == tmp_path / "sweep" and len(folder.name) < 150 for folder in folders)


def test_a_failed_job_scores_nan(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    scores: list[float] = []
    launch = BasicLauncher.launch

    def listen(self: BasicLauncher, *args: object, **named: object) -> object:
        jobs = launch(self, *args, **named)
        scores.extend(job.return_value for job in jobs)
        return jobs

    monkeypatch.setattr(BasicLauncher, "launch", listen)
    with pytest.raises(SystemExit):
        call("-m", "prompt.num_virtual_tokens=5,7")
    assert scores[0] == 0.05 and math.isnan(scores[1])


def test_as_a_program(tmp_path: Path) -> None:
    argv = [sys.executable, __file__, "prompt.num_virtual_tokens=7"]
    ended = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "Seven is not a length.\n")


if __name__ == "__main__":
    main()
