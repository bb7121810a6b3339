"""The commands of the longer documents are commands: a shell reads them, and every key in them is there."""

import re
import subprocess
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from ptlit import overrides
from ptlit.overrides import preflight

DOCUMENTS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.md"))
TOLD = r"""
python() {
  case "$2" in ptlit.*) printf '%s\x1f' "$@"; echo ;; esac
}
unzip() { :; }
"""  # a shell's python: it says what it is given
ELSEWHERE = "distill.run="  # names a run that is not here


def commands(document: Path, folder: Path) -> list[list[str]]:
    """What the shell hands to Python, variables and loops and all."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (folder / "gemma").mkdir()
    script = TOLD + "\n".join(blocks)
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return [line.split("\x1f")[:-1] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_passes_the_check(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overrides, "device_mistakes", lambda cfg: [])  # some are for GPUs
    monkeypatch.chdir(tmp_path)
    said = commands(document, tmp_path)
    assert len(said) > 5
    for _, module, *words in said:
        for file in re.findall(r"data\.test_path=(\S+)", " ".join(words)):
            Path(file).touch()
        GlobalHydra.instance().clear()
        preflight([word for word in words if not word.startswith(ELSEWHERE)], module.removeprefix("ptlit."))
