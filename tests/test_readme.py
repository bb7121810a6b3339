"""What the README shows works: commands pass the check, snippets run, names and numbers are right."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from methods import METHODS, method_options
from tiny import tiny_lm

import ptlit.prompt
from ptlit import overrides
from ptlit.config import conf_folder
from ptlit.lm import LMShape
from ptlit.overrides import preflight
from ptlit.quoting import paths_quoted

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
LEAD = "python -m ptlit.train"
COMMANDS = [
    line.strip()
    for text in [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "conf").rglob("*.yaml"))]
    for line in re.findall(rf"(?:^#? *|`)({LEAD}\s[^<`\n]*)`?$", text, flags=re.MULTILINE)
]


def block(language: str, holding: str) -> str:
    (found,) = (text for kind, text in BLOCKS if kind == language and holding in text)
    return found


@pytest.fixture
def low_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """README's own method, as if its two files stood where it says; the folder to look for its config."""
    (tmp_path / "low_rank.py").write_text(block("python", "low_rank.py"), encoding="utf-8")
    (tmp_path / "conf" / "prompt").mkdir(parents=True)
    (tmp_path / "conf" / "prompt" / "low_rank.yaml").write_text(
        block("yaml", "low_rank.yaml"), encoding="utf-8"
    )
    monkeypatch.setattr(ptlit.prompt, "__path__", [*ptlit.prompt.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "ptlit.prompt.low_rank", raising=False)
    return str(tmp_path / "conf")


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_command_passes_preflight(line: str, low_rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        overrides, "device_mistakes", lambda cfg: []
    )  # a machine without a GPU can test it too
    monkeypatch.chdir(Path(low_rank).parent)
    for file in re.findall(r"data\.(?:\w+_)?path=(\S+\.\w+)", line):
        Path(file).touch()
    preflight(["--config-dir", low_rank, *shlex.split(line.removeprefix(LEAD))])


SETTINGS = [
    setting
    for setting in re.findall(
        r"`((?:data|prompt|loss|optim|ensemble|drop_virtual_tokens)\b[^`\n]*=[^`\n]+)`", README
    )
    if "..." not in setting and "<" not in setting
]


@pytest.mark.parametrize("said", SETTINGS)
def test_a_setting_in_the_text_is_taken_as_a_shell_passes_it_on(said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").touch()
    tokens = sum(map(int, re.findall(r"{soft:(\d+)}", said))) or 20
    words = ["data=classification", f"data.path={tmp_path}/mine.csv", f"prompt.num_virtual_tokens={tokens}"]
    preflight(paths_quoted([*words, *shlex.split(said)]))


def test_a_template_is_typed_as_readme_has_it() -> None:
    (said,) = (setting for setting in SETTINGS if setting.startswith("data.template="))
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("train", paths_quoted(shlex.split(said)))
    assert cfg.data.template == "{soft:10}Review: {text}{soft:5}\nMood:"


def test_readme_shows_commands() -> None:
    assert len([line for line in COMMANDS if line in README]) > 12


@pytest.mark.usefixtures("low_rank")
def test_own_method_keeps_the_contract() -> None:
    options = yaml.safe_load(block("yaml", "low_rank.yaml"))
    module, _, name = options["_target_"].rpartition(".")
    shape = tiny_lm("llama").shape
    kind = getattr(__import__(module, fromlist=[name]), name)
    prompt = kind(shape=shape, num_virtual_tokens=6, rank=options["rank"])
    target = torch.randn(6, shape.hidden_size)
    prompt.start_at(target)
    torch.testing.assert_close(prompt(), target)
    prompt().square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in prompt.parameters())


def test_table_of_methods() -> None:
    smollm2 = LMShape(hidden_size=576, num_layers=30, num_kv_heads=3, head_dim=64, max_positions=8192)
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \| [\d.?]+ \|$", README, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == METHODS
    for name, trainable in rows:
        kind, options = method_options(name)
        with torch.device("meta"):
            prompt = kind(shape=smollm2, **(options | {"num_virtual_tokens": 20}))
        assert f"{sum(parameter.numel() for parameter in prompt.parameters()):,}" == trainable


def test_paths_and_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    told = README.partition("## How it works")[2].partition("## ")[0]
    paths = re.findall(r"`([\w/]+(?:\.py|\.yaml|/))`", told)
    assert len(paths) >= 8
    links += [path if "/" in path.rstrip("/") or path == "ptlit/" else f"ptlit/{path}" for path in paths]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_targets_exist() -> None:
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert set(re.findall(r"(?:`|    )make ([a-z]+)", README)) == targets


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 200
