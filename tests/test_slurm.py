"""A job of SLURM's that is about to end: for real but for `scontrol`, which notes what it is asked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import TRAINING, make_place, train_at

from ptlit.slurm import job_id

STEPS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_place(tmp_path_factory.mktemp("cluster"))
    (place / "bin").mkdir()
    scontrol = place / "bin" / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\necho "$@" >> {place}/requeued\nls {place}/run/checkpoints >> {place}/left\n'
    )
    scontrol.chmod(0o755)
    return place


def job(place: Path, restarts: int = 0) -> subprocess.Popen[str]:
    """The same command each time, as SLURM starts it."""
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "soft", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_RESTART_COUNT": str(restarts)}
    path = {"PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    words = [
        *TRAINING,
        "model.name_or_path=lm",
        "experiment=ptuning_v2",
        "prompt.dropout=0.1",
        f"trainer.max_steps={STEPS}",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "ptlit.train", *words, "hydra.run.dir=run", "resume=run"],
        cwd=place,
        env=os.environ | slurm | path | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},  # as tests have
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_is_requeued_and_the_same_command_goes_on_bit_for_bit(place: Path) -> None:
    process = job(place)
    deadline = time.monotonic() + 120
    last = place / "run" / "checkpoints" / "last.ckpt"
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "SLURM job 4711 is requeued." in said and "Traceback" not in said
    assert (place / "requeued").read_text() == "requeue 4711\n"
    assert "last.ckpt" in (place / "left").read_text()  # before it was asked
    assert not list(place.rglob("hpc_ckpt*"))
    assert not (place / "run" / "metrics.json").exists()
    stopped_at = torch.load(last, weights_only=True)["global_step"]
    assert 0 < stopped_at < STEPS

    again = job(place, restarts=1)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert (place / "requeued").read_text() == "requeue 4711\n"
    whole = train_at(
        place, "whole", "experiment=ptuning_v2", "prompt.dropout=0.1", f"trainer.max_steps={STEPS}"
    )
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (place / "run", whole)
    )
    assert all(torch.equal(one[name], other[name]) for name in other)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (place / "run", whole)]
    assert metrics[0]["test/loss"] == metrics[1]["test/loss"]


def test_the_job_is_named_as_scontrol_has_it() -> None:
    assert job_id({}) is None
    assert job_id({"SLURM_JOB_ID": "7"}) == "7"
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert job_id(array) == "7_2"


@pytest.mark.parametrize("words", [["resume=nowhere"], ["resume=nowhere", "hydra.run.dir=elsewhere"]])
def test_a_folder_to_go_on_with_that_holds_nothing_is_a_mistake_all_the_same(
    place: Path, words: list[str]
) -> None:
    with pytest.raises(SystemExit, match="resume=nowhere: there is no checkpoint"):
        train_at(place, "unused", *words)
