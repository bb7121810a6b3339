"""Tiny LMs are fastest on one thread, and the processes of the tests then do not get in each other's way."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from runs import make_place, train_at

os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start
torch.set_num_threads(1)


# Files of tests that take long; two workers end at the same time if these come first.
LONG = ["benchmark", "train", "notebooks", "slurm", "search", "predict", "command", "chat", "resume", "lora"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def first_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="session")
def first_trained(first_place: Path) -> Path:
    return train_at(first_place, "run", "experiment=ptuning_lstm", "trainer.max_steps=30")


@pytest.fixture(scope="session")
def first_trained_deep(first_place: Path) -> Path:
    return train_at(first_place, "deep", "experiment=prefix_tuning")


@pytest.fixture(scope="module")
def place(first_place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file's tests have a folder of their own: the names of their runs are nobody else's."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(first_place / "lm", folder / "lm")
    shutil.copy(first_place / "tweets.csv", folder)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path, first_trained: Path) -> Path:
    """A run of thirty steps. Not to be changed: copy it."""
    return as_if_trained_at(place, first_trained)


@pytest.fixture(scope="module")
def trained_deep(place: Path, first_trained_deep: Path) -> Path:
    return as_if_trained_at(place, first_trained_deep)


def as_if_trained_at(place: Path, run: Path) -> Path:
    """A run's copy, on the LM of its new place."""
    copied = Path(shutil.copytree(run, place / run.name))
    for path in (path for ending in ("yaml", "json", "md") for path in copied.rglob(f"*.{ending}")):
        path.write_text(path.read_text().replace(str(run.parent), str(place)))
    return copied
