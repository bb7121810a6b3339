"""What of a config is not ptlit's: a run folder may come from a stranger, and naming code makes it run."""

from typing import Any

from lightning import LightningDataModule

from ptlit.config import find_target
from ptlit.lora import Lora
from ptlit.prompt import SoftPrompt


def foreign_code(part: str, node: dict[str, Any]) -> list[str]:
    """What a node would run that is not ours; told without importing it."""
    target, *inner = targets_in(node) or ["nothing"]
    if part == "model":
        inner += ["trust_remote_code"] if node.get("trust_remote_code") else []
        return inner if target == "ptlit.lm.load_lm" else [target, *inner]
    kind: type = {"prompt": SoftPrompt, "data": LightningDataModule, "lora": Lora}[part]
    found = find_target(part, target)[0] if target.startswith(f"ptlit.{part}.") else None
    ours = isinstance(found, type) and issubclass(found, kind) and found.__module__.startswith("ptlit.")
    return inner if ours else [target, *inner]


def targets_in(value: Any) -> list[str]:
    """What a node names, and what the nodes inside it name."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    here = [str(value["_target_"])] if isinstance(value, dict) and "_target_" in value else []
    return [*here, *(target for each in inside for target in targets_in(each))]
