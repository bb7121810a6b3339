"""Prompts learn through an LM in eight or four bits as through the same numbers in float32."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_lm

from ptlit.lm import load_lm
from ptlit.mistake import UserMistake

TESTS = Path(__file__).parent
ASIDE = Path(sys.prefix) / "quantized"  # where `make setup` has the packages
NAMES = ["int8", "llm_int8", "nf4"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    lm = tiny_lm("llama", spread=0.2)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.skipif(not ASIDE.is_dir(), reason="bitsandbytes and torchao are installed by `make setup`")
def test_gradients_are_those_of_what_the_weights_now_are(folder: str) -> None:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(ASIDE)])
    program = [sys.executable, str(TESTS / "quantised_gradients.py"), folder, *NAMES]
    environment = {**os.environ, "PYTHONPATH": path}
    found = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    told = [line.split() for line in found.stdout.splitlines() if line.startswith("cosine")]
    assert [name for _, name, *_ in told] == [name for name in NAMES for _ in range(2)]
    assert min(float(cosine) for *_, cosine in told) > 0.999


def test_a_package_that_is_not_there_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptlit.quantization.find_spec", lambda name: None)
    with pytest.raises(
        UserMistake, match="model.quantization=nf4 needs a package more: pip install bitsandb"
    ):
        load_lm(folder, quantization="nf4")


def test_what_only_gpus_convert_is_said(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserMistake, match="int4 is converted on a GPU alone: give nf4"):
        load_lm(folder, quantization="int4")
