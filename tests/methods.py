"""Every method that has a YAML file: a new file under conf/prompt is held to the contract from then on."""

from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class

from ptlit.config import conf_folder
from ptlit.lm import LMShape
from ptlit.prompt import SoftPrompt

METHODS = sorted(path.stem for path in (Path(conf_folder()) / "prompt").glob("*.yaml"))
SMALL = {"num_virtual_tokens": 6, "hidden_size": 16}


def method_options(name: str, **changes: Any) -> tuple[type[SoftPrompt], dict[str, Any]]:
    options = yaml.safe_load((conf_folder() / "prompt" / f"{name}.yaml").read_text())
    options.pop("init")
    kind = get_class(options.pop("_target_"))
    return kind, options | {key: value for key, value in changes.items() if key in options}


def make_prompt(name: str, shape: LMShape, **changes: Any) -> SoftPrompt:
    """The method with its YAML's options, small unless told otherwise."""
    kind, options = method_options(name, **(SMALL | changes))
    return kind(shape=shape, **options)
