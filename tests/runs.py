"""Runs to open: trained in this process by the command itself, a few steps on a tiny LM and tiny tweets."""

import csv
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_lm

TWEETS = [(f"flight {i * 7919 % 1000} was late!!!", "bad") for i in range(60)]
TWEETS += [(f"flight {i * 7919 % 1000} was lovely :)", "good") for i in range(60)]


def make_place(folder: Path) -> Path:
    """A folder with a tiny LM and a small file of tweets."""
    lm = tiny_lm("llama", spread=0.2)
    lm.model.save_pretrained(folder / "lm")
    lm.tokenizer.save_pretrained(folder / "lm")
    with (folder / "tweets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *TWEETS])
    return folder


def call(place: Path, main: Callable[[], None], *words: str) -> None:
    """A command, as if said in that folder; without the process that a shell would start."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "argv", ["command", *words])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # Lightning's advice; a process of its own would just print it
                main()
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


TRAINING = [
    "model=hf",
    "data=classification",
    "data.path=tweets.csv",
    "data.max_length=64",
    "data.template='{text}'",
    "optim.lr=0.05",
    "trainer.max_steps=10",
    "prompt.num_virtual_tokens=6",
]


def train_at(place: Path, name: str, *words: str) -> Path:
    """The folder of a run named `name`."""
    from ptlit.train import main

    call(place, main, *TRAINING, f"model.name_or_path={place}/lm", f"hydra.run.dir={name}", *words)
    return place / name
