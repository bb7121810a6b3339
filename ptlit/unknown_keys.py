"""A key that the config does not have: what is wrong with it, and which one was meant."""

import inspect
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from ptlit.config import conf_folder
from ptlit.signature import guess


def key_mistake(override: Override, cfg: DictConfig, groups: Sequence[str]) -> str | None:
    key, exists = override.key_or_group, has_key(cfg, override.key_or_group)
    if override.is_add():
        value = override.value()
        there = exists and OmegaConf.select(cfg, key, throw_on_missing=False) is not None
        if not there or isinstance(value, dict | list):
            return None
        return f"{override.input_line}: {key} is in the config already, so leave out the +."
    if "/" in key or override.package is not None:
        return f"{key} is not a group of this config: {guess(key, groups)}"
    if override.is_force_add() or exists:
        return None
    place, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, place, throw_on_missing=False) if place else None
    if isinstance(node, DictConfig) and accepts(node, name):
        return f"{key} is not in the config, though {node._target_} has it: write +{override.input_line}."
    group = key.partition(".")[0]
    chosen = cfg.hydra.runtime.choices.get(group)
    where = f" ({group}={chosen})" if chosen else ""
    if place and name != "defaults" and (others := choices_with(key, group)):
        return f"{key} is not a key of this config{where}: {' and '.join(others)} would have it."
    every = list(dotted(cfg, hydra=key.startswith("hydra")))
    near = [each for each in every if each.rpartition(".")[2] == name][:1] or get_close_matches(
        key, every, n=1
    )
    ending = f"did you mean {near[0]}?" if near else f"known are {', '.join(nearby(cfg, key))}."
    return f"{key} is not a key of this config{where}: {ending}"


def choices_with(key: str, group: str) -> list[str]:
    """The files of a group that have the key, as they are chosen; those of experiments stand elsewhere."""
    name = key.removeprefix(f"{group}.")
    files = sorted((conf_folder() / group).glob("*.yaml"))
    own = [file for file in files if "@package" not in file.read_text(encoding="utf-8")]
    return [f"{group}={file.stem}" for file in own if has_key(OmegaConf.load(file), name)]


def has_key(cfg: DictConfig | ListConfig, key: str) -> bool:
    node: Any = cfg
    for part in key.replace("[", ".").replace("]", "").split("."):
        if OmegaConf.is_dict(node) and part in list(map(str, node.keys())):
            node = node._get_node(part)
        elif OmegaConf.is_list(node) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        else:
            return False
    return True


def accepts(node: DictConfig, option: str) -> bool:
    """Whether what the node names has such an option, though the config does not list it."""
    try:
        return option in inspect.signature(resolve_name(node["_target_"])).parameters
    except Exception:  # no _target_, or one that cannot be had: another line says so
        return False


def dotted(node: Any, path: str = "", hydra: bool = False) -> Iterator[str]:
    """Every key of the config in full."""
    if not OmegaConf.is_dict(node) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in map(str, node.keys()):
        if not key.startswith("_") and (path or hydra == (key == "hydra")):
            yield f"{path}{key}"
            yield from dotted(node._get_node(key), f"{path}{key}.")


def nearby(cfg: DictConfig, key: str) -> list[str]:
    """What there is at the deepest place that does exist."""
    place = key.rpartition(".")[0]
    while place and not OmegaConf.is_dict(OmegaConf.select(cfg, place, throw_on_missing=False)):
        place = place.rpartition(".")[0]
    node = OmegaConf.select(cfg, place) if place else cfg
    lead = f"{place}." if place else ""
    return [f"{lead}{name}" for name in map(str, node) if name[0] != "_" and name != "hydra"]
