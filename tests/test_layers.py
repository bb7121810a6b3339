"""Who may know whom, and what may stand at the top of the repository."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HYDRA = {
    "benchmark.__main__",
    "benchmark.shipped",
    "build",
    "callbacks.one_at_a_time",
    "callbacks.sweep_table",
    "command",
    "config",
    "overrides",
    "quoting",
    "search",
    "search_space",
    "signature",
    "train",
    "unknown_keys",
}
TOP = "CHANGELOG.md LICENSE Makefile README.md conf constraints.txt notebooks ptlit pyproject.toml tests"


def imports(folder: str = "") -> Iterator[tuple[str, str]]:
    """(importer, imported) for every file of ptlit, names without `ptlit.` where they are its own."""
    for file in sorted((ROOT / "ptlit" / folder).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT / "ptlit").with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                inside = [f"ptlit.{alias.name}" for alias in node.names]
                found = inside if node.module == "ptlit" else [str(node.module)]
            else:
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            yield from ((name, each) for each in found)


@pytest.mark.parametrize(
    ("folder", "known"),
    [("data", {"data", "hub", "mistake", "wheels"}), ("prompt", {"prompt", "lm", "prefix", "mistake"})],
)
def test_parts_know_little_of_each_other(folder: str, known: set[str]) -> None:
    own = {(name, each) for name, each in imports(folder) if each.startswith("ptlit.")}
    assert own
    assert {(name, each) for name, each in own if each.split(".")[1] not in known} == set()


def test_nobody_needs_the_benchmark_nor_peft() -> None:
    """They are there to be compared with; training does without them, but for a LoRA."""
    apart = ("benchmark.", "lora")
    outside = {(name, each) for name, each in imports() if not name.startswith(apart)}
    assert {(name, each) for name, each in outside if each.startswith(("ptlit.benchmark", "peft"))} == set()


def test_few_know_optuna() -> None:
    """An extra: whoever does not search needs none."""
    assert {name for name, each in imports() if each.split(".")[0] == "optuna"} == {
        "search",
        "search_space",
        "trials",
    }


def test_few_know_hydra() -> None:
    assert {name for name, each in imports() if each.split(".")[0] == "hydra"} <= HYDRA


def test_nothing_else_stands_at_the_top() -> None:
    git = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if git.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in git.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= set(TOP.split())
