"""preflight(): the mistakes of a command line, all at once, before Hydra stops at the first.

A sweep is judged by its values: each is tried once, while every other key keeps its first.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ptlit.config import conf_folder, config_mistakes, device_mistakes
from ptlit.mistake import UserMistake
from ptlit.search import search_mistakes
from ptlit.search_space import is_search, judged_by, space_mistakes
from ptlit.signature import guess
from ptlit.unknown_keys import key_mistake

LOCAL_LAUNCHERS = ("basic", "joblib")  # the others may send a job to a machine with other devices
VALUES_TRIED = 100  # of one swept key
PROBLEMS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)


@dataclass(frozen=True)
class Wish:
    """One key of the command line and what it is to be: one value, or all those of a sweep."""

    key: str
    said: Override
    values: tuple[Override, ...]
    is_group: bool


def preflight(argv: Sequence[str], config_name: str = "train") -> None:
    flags = get_args_parser().parse_args(list(argv))
    asks = (flags.help, flags.hydra_help, flags.cfg, flags.info, flags.shell_completion)
    if any(asks) or flags.config_path or flags.experimental_rerun:
        return
    lines = list(flags.overrides)
    if flags.config_dir:
        if not Path(flags.config_dir).is_dir():
            raise UserMistake(f"--config-dir {flags.config_dir} is not a folder.")
        lines.append(f"hydra.searchpath=['file://{Path(flags.config_dir).resolve()}']")
    multirun = flags.multirun or "hydra.mode=MULTIRUN" in lines
    if multirun and config_name != "train":
        raise UserMistake(f"-m is for training: python -m ptlit.{config_name} makes no runs.")
    name = (flags.config_name or config_name).removesuffix(".yaml")
    with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=config_name):
        if mistakes := CommandLine(name, multirun, lines).mistakes():
            raise UserMistake("\n".join(mistakes))


class CommandLine:
    def __init__(self, config_name: str, multirun: bool, lines: Sequence[str]):
        self.config_name, self.multirun = config_name, multirun
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        self.loader = hydra.config_loader
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.search = [line for line in lines if line.startswith("hydra.searchpath=")]
        self.found: list[str] = []
        self.scores: set[tuple[str, str]] = set()  # of a search: what its runs return
        self.wishes = [wish for line in lines if line not in self.search for wish in self.read(line)]

    def mistakes(self) -> list[str]:
        try:
            first = self.compose([wish.values[0] for wish in self.wishes if wish.is_group])
            self.add_sweep(first)
            self.judge_search(first)
            for groups in one_at_a_time([wish for wish in self.wishes if wish.is_group]):
                self.judge(self.compose(groups))
            if len(self.scores) > 1:
                names = " and ".join(sorted(f"{monitor} ({mode})" for monitor, mode in self.scores))
                self.found.append(
                    f"A search needs one score, and these runs return {names}: search them apart."
                )
        except PROBLEMS as problem:
            self.found.append(in_our_words(problem))
        return list(dict.fromkeys(self.found))

    def read(self, line: str) -> Iterator[Wish]:
        """The wish that a line states; a value that no group has is a mistake, and left out."""
        try:
            override = self.parsed(line)
        except HydraException as problem:
            reason, quoted = str(problem).splitlines()[1:2], "'data.template=\"Tweet: {text}\"'"
            bare = '\'data.label_words={bad: " bad", good: " good"}\', names without quotes of their own'
            example = bare if line.partition("=")[2].startswith("{") else quoted
            self.found.append(
                f"{line!r} cannot be read ({''.join(reason)}): quote it as {example}."
                if "=" in line
                else f"{line!r} is no setting: write key=value, such as optim.lr=0.01."
            )
            return
        if override.is_sweep_override() and not self.multirun:
            self.found.append(
                f"{line} gives several values: add -m for a run with each, or write one list as [a,b]."
            )
        values = self.values(override)
        if not values:
            self.found.append(f"{line} gives no value.")
        key = override.key_or_group
        options = self.loader.get_group_options(key, overrides=self.search)
        if options:
            values = [value for value in values if self.is_choice(value, options)]
        if values:
            yield Wish(key, override, tuple(values), is_group=bool(options))

    def values(self, override: Override) -> list[Override]:
        if not override.is_sweep_override():
            return [override]
        sweep = override.value()
        if isinstance(sweep, IntervalSweep):
            said = [str(sweep.start), str(sweep.end)]
        else:
            said = list(islice(override.sweep_string_iterator(), VALUES_TRIED))
        return [self.parsed(f"{override.get_key_element()}={value}") for value in said]

    def parsed(self, line: str) -> Override:
        return self.parser.parse_overrides([line])[0]

    def is_choice(self, override: Override, options: Sequence[str]) -> bool:
        if override.is_delete():
            return True
        value = override.value()
        chosen = [str(each) for each in value] if isinstance(value, list) else [str(value)]
        if value is None:
            self.found.append(f"{override.input_line} chooses nothing: {guess('null', options)}")
        wrong = [each for each in chosen if each.removesuffix(".yaml") not in options and value is not None]
        for each in wrong:
            near = guess(each, options)
            known = f" Known are {', '.join(options)}." if near.endswith("?") else ""
            self.found.append(f"{override.key_or_group}={each} is no file of its group: {near}{known}")
        return value is not None and not wrong

    def compose(self, groups: Sequence[Override]) -> DictConfig:
        lines = [*self.search, *(str(override.input_line) for override in groups)]
        return compose(self.config_name, lines, return_hydra_config=True)

    def add_sweep(self, cfg: DictConfig) -> None:
        """The keys that a file of conf/sweep runs through; the command line goes first."""
        params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
        of_a_job = any(wish.key == "resume" and wish.values[0].value() for wish in self.wishes)
        if params and not self.multirun and of_a_job:
            return  # its notes name the sweep beside the values that the job was given
        if params and not self.multirun:
            self.found.append(f"sweep={cfg.hydra.runtime.choices.get('sweep')} needs many runs: add -m.")
        elif params:
            given = {wish.key for wish in self.wishes}
            wishes = [wish for key, value in params.items() for wish in self.read(f"{key}={value}")]
            self.wishes = [wish for wish in wishes if wish.key not in given] + self.wishes

    def judge_search(self, cfg: DictConfig) -> None:
        """What is swept, as ranges to search or as values to go through."""
        swept = [wish.said for wish in self.wishes if wish.said.is_sweep_override()]
        if not is_search(cfg):
            endless = [each.input_line for each in swept if each.is_interval_sweep()]
            self.found += [f"{each} is for a search: add hydra/sweeper=search." for each in endless]
        elif self.multirun:
            self.found += space_mistakes(swept)

    def judge(self, cfg: DictConfig) -> None:
        """Hold all values against a config whose groups are chosen."""
        groups = [
            *self.loader.list_groups(""),
            *(f"hydra/{name}" for name in self.loader.list_groups("hydra")),
        ]
        wrong = {
            wish.key: key_mistake(wish.values[0], cfg, groups) for wish in self.wishes if not wish.is_group
        }
        self.found += [mistake for mistake in wrong.values() if mistake]
        keys = [wish for wish in self.wishes if not wish.is_group and not wrong[wish.key]]
        for overrides in one_at_a_time(keys):
            tried = copy.deepcopy(cfg)
            try:
                for override in overrides:
                    apply(override, tried)
            except PROBLEMS as problem:
                self.found.append(in_our_words(problem))
            self.found += config_mistakes(tried, self.config_name) + subset_mistakes(overrides, tried)
            if is_search(tried):
                self.found += search_mistakes(tried)
                self.scores.add(judged_by(tried))
            if cfg.hydra.runtime.choices["hydra/launcher"] in LOCAL_LAUNCHERS:
                self.found += device_mistakes(tried)


def one_at_a_time(wishes: Sequence[Wish]) -> Iterator[list[Override]]:
    """The first values of all; then every other value, alone among the first of the others."""
    first = [wish.values[0] for wish in wishes]
    yield first
    for index, wish in enumerate(wishes):
        for value in wish.values[1:]:
            yield [*first[:index], value, *first[index + 1 :]]


def apply(override: Override, cfg: DictConfig) -> None:
    """As Hydra will."""
    with open_dict(cfg):
        if override.is_delete():
            place, _, key = override.key_or_group.rpartition(".")
            del (OmegaConf.select(cfg, place) if place else cfg)[key]
        else:
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True, force_add=True)


def subset_mistakes(overrides: Sequence[Override], cfg: DictConfig) -> list[str]:
    """Only of one that is said: conf has subsets too, and who gives another path need not take them back."""
    from ptlit.data.sources import has_subsets

    path = OmegaConf.select(cfg, "data.path", throw_on_resolution_failure=False, throw_on_missing=False)
    said = [each.value() for each in overrides if each.key_or_group == "data.subset" and not each.is_delete()]
    return [
        f"data.subset={subset}: {path} is no data set of the hub, and has no subsets: leave it out."
        for subset in said
        if subset is not None and isinstance(path, str) and not has_subsets(path)
    ]


def in_our_words(problem: Exception) -> str:
    """Hydra's message in one line."""
    if isinstance(problem, MissingConfigException) and problem.missing_cfg_file and problem.options:
        name = str(problem.missing_cfg_file).rpartition("/")[2]
        return f"{str(problem).splitlines()[0]}: {guess(name, [str(option) for option in problem.options])}"
    text = str(problem).partition("Config search path")[0]
    cause = "" if problem.__cause__ is None else f" {problem.__cause__}"
    return " ".join(f"{text}{cause}".split())
