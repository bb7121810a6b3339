"""Commands whose config names their function: the two agree, and the examples of the help are right."""

import inspect
import re
import shlex
from pkgutil import resolve_name

import pytest
import yaml

from ptlit.config import conf_folder
from ptlit.overrides import preflight
from ptlit.quoting import paths_quoted

CONFIGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(conf_folder().glob("*.yaml"))}
COMMANDS = {name: config for name, config in CONFIGS.items() if "_target_" in config}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_config_has_the_options_and_the_values_of_the_function(name: str) -> None:
    config = {
        key: value for key, value in COMMANDS[name].items() if key not in ("defaults", "hydra", "_target_")
    }
    parameters = inspect.signature(resolve_name(COMMANDS[name]["_target_"])).parameters
    usual = {
        key: "???" if each.default is inspect.Parameter.empty else each.default
        for key, each in parameters.items()
    }
    assert config == usual


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_pass(name: str) -> None:
    help_text = COMMANDS[name]["hydra"]["help"]["template"]
    examples = re.findall(rf"^ +python -m ptlit.{name} (.+)$", help_text, flags=re.MULTILINE)
    assert len(examples) > 1
    for example in examples:
        preflight(paths_quoted(shlex.split(example)), name)
    explained = set(re.findall(r"^ {2,}(\w+)=", help_text, flags=re.MULTILINE))
    assert explained <= COMMANDS[name].keys()
