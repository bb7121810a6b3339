"""The config of a run as its folder keeps it: with what was found in the data, and true in any folder."""

import inspect
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ptlit.data import ChatData, ClassificationData

NAMING_PATHS = (
    "model.name_or_path",
    "lora.path",
    "data.path",
    "data.val_path",
    "data.test_path",
    "distill.run",
)


def completed(cfg: DictConfig, data: Any) -> DictConfig:
    """The config with what was found in the data, and with whole paths: it then holds in any folder."""
    full = with_whole_paths(cfg)
    known = inspect.signature(type(data)).parameters
    unsaid = {
        name: known[name].default for name in known if known[name].default is not inspect.Parameter.empty
    }
    unsaid.pop("seed", None)  # the run's own
    full.data = OmegaConf.merge(unsaid, full.data)
    if isinstance(data, ClassificationData):
        full.data.instruction = escaped(data.instruction)
        full.data.label_words = {
            name: escaped(words[0]) if len(words) == 1 else [escaped(word) for word in words]
            for name, words in zip(data.label_words.names, data.label_words.words, strict=True)
        }
    if isinstance(data, ChatData) and data.template.template is not None:  # it may lie in a file
        full.data.chat_template = escaped(data.template.template)
    return full


def with_whole_paths(cfg: DictConfig) -> DictConfig:
    full = cfg.copy()
    for key in NAMING_PATHS:
        given = OmegaConf.select(full, key, throw_on_resolution_failure=False)
        if isinstance(given, str) and (there := Path(given).expanduser()).exists():
            OmegaConf.update(full, key, str(there.absolute()))
    return full


def escaped(text: str) -> str:
    """So that it refers to no other key of the config."""
    return text.replace("${", "\\${")
