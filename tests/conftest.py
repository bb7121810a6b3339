"""Tiny LMs are fastest on one thread, and the processes of the tests then do not get in each other's way."""

import os
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
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def trained(place: Path) -> Path:
    """A run of thirty steps. Not to be changed: copy it."""
    return train_at(place, "run", "experiment=ptuning_lstm", "trainer.max_steps=30")


@pytest.fixture(scope="session")
def trained_deep(place: Path) -> Path:
    return train_at(place, "deep", "experiment=prefix_tuning")
