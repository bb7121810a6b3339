"""preflight(): the mistakes of a command line, all at once and in our own words, before Hydra stops at the first.

A sweep is judged by its values: each is tried once, with every other key at its first value.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ptlit.config import conf_folder, config_mistakes, device_mistakes
from ptlit.mistake import UserMistake
from ptlit.signature import guess

LOCAL_LAUNCHERS = ("basic", "joblib")  # the others may run on a machine with other devices
VALUES_TRIED = 100  # of one swept key


@dataclass(frozen=True)
class Wish:
    """One override: its key, whether it names a group, and the override lines that it stands for."""

    override: Override
    key: str
    is_group: bool
    lines: tuple[str, ...]  # one, or one a value of a sweep


def preflight(argv: Sequence[str], config_name: str = "train") -> None:
    flags = get_args_parser().parse_args(list(argv))
    asks = (flags.help, flags.hydra_help, flags.cfg, flags.info, flags.shell_completion, flags.config_path)
    if any(asks) or flags.experimental_rerun:
        return
    lines: list[str] = flags.overrides
    if flags.config_dir:
        lines = [*lines, f"hydra.searchpath=['file://{flags.config_dir}']"]
    multirun = flags.multirun or any(line.lower() == "hydra.mode=multirun" for line in lines)
    name = flags.config_name or config_name
    with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=name):
        if mistakes := command_line_mistakes(lines, name, multirun):
            raise UserMistake("\n".join(mistakes))


def command_line_mistakes(lines: Sequence[str], config_name: str, multirun: bool) -> list[str]:
    mistakes, wishes = read_lines(lines, multirun)
    try:
        base = compose(config_name, first_lines(wishes, groups=True), return_hydra_config=True)
    except PROBLEMS as problem:
        return [*mistakes, in_a_line(problem)]
    wishes, swept = wishes, sweep_of(base)
    if swept and multirun:
        more, swept_wishes = read_lines(swept, multirun)
        mistakes, wishes = mistakes + more, swept_wishes + wishes
    elif swept:
        mistakes.append(f"sweep={base.hydra.runtime.choices.get('sweep')} asks for many runs: add -m.")
    wrong = {wish.key: mistake for wish in wishes if not wish.is_group and (mistake := key_mistake(wish, base))}
    wishes = [wish for wish in wishes if wish.key not in wrong]
    mistakes += wrong.values()
    for overrides in variants(wishes):
        try:
            cfg = compose(config_name, overrides, return_hydra_config=True)
        except PROBLEMS as problem:
            mistakes.append(in_a_line(problem))
            continue
        mistakes += config_mistakes(cfg, config_name)
        if base.hydra.runtime.choices["hydra/launcher"] in LOCAL_LAUNCHERS:
            mistakes += device_mistakes(cfg)
    return list(dict.fromkeys(mistakes))
