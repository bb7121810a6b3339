"""What is measured: a case of the axes, and what a worker needs to build it without Hydra."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

import yaml

from ptlit.config import conf_folder
from ptlit.mistake import UserMistake
from ptlit.signature import guess

Node = Mapping[str, Any]  # plain Python, with a _target_
Row = Mapping[str, Any]  # of data/example: input_ids, labels


class Benchmark(Protocol):
    """What a file of conf/benchmark names."""

    device: str

    def run(self, nodes: "Nodes", folder: Path) -> None: ...


@dataclass(frozen=True)
class Nodes:
    """The parts of the config that a worker builds for itself."""

    model: Node
    data: Node
    optim: Node
    seed: int
    device: str


@dataclass(frozen=True)
class Case:
    """One point of the axes. LoRA and full fine-tuning know no method and no virtual tokens."""

    task: str  # training, classification or generation
    method: str | None
    num_virtual_tokens: int | None
    batch_size: int
    batching: str

    def __str__(self) -> str:
        prompt = f"{self.method}, {self.num_virtual_tokens} virtual tokens" if self.method else "no prompt"
        return f"{self.task}: {prompt}, {self.batching} batches of {self.batch_size}"


def made(node: Node, **live: Any) -> Any:
    """What a node names, built. Not by Hydra: a worker that stands for PEFT shall carry nothing of ours."""
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    return resolve_name(node["_target_"])(**live, **options)


def checked_method(name: str) -> str:
    known = sorted(path.stem for path in (conf_folder() / "prompt").glob("*.yaml"))
    if name not in known:
        raise UserMistake(f"benchmark.methods: {name} is no file of conf/prompt: {guess(name, known)}")
    return name


def prompt_node(method: str, num_virtual_tokens: int | None) -> Node:
    """A method of conf/prompt, without dropout: the engines have to agree on its gradients."""
    node = yaml.safe_load((conf_folder() / "prompt" / f"{method}.yaml").read_text(encoding="utf-8"))
    del node["init"]  # the parameters start as their constructor makes them, which is PEFT's start too
    for own in ("residual", "lm_scale"):  # nor has PEFT anything that passes an encoder, or a scale
        node.pop(own, None)
    return node | {"num_virtual_tokens": num_virtual_tokens} | ({"dropout": 0.0} if "dropout" in node else {})
