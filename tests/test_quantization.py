"""A frozen LM in eight bits trains a prompt much as the whole LM does. (For those who have torchao.)"""

from pathlib import Path

import pytest
import torch
from methods import make_prompt
from tiny import padded_rows, tiny_lm

from ptlit.lm import load_lm
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.mistake import UserMistake
from ptlit.prompted_lm import PromptedLM


@pytest.fixture
def folder(tmp_path: Path) -> str:
    lm = tiny_lm("llama", spread=0.2)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("method", ["ptuning_mlp", "prefix_tuning"])
@pytest.mark.filterwarnings("ignore")
def test_gradients_pass_through_eight_bits(folder: str, method: str) -> None:
    pytest.importorskip("torchao")
    ids, mask, labels = padded_rows()
    keep, targets = learned_positions(labels)
    gradients = []
    for quantization in (None, "int8"):
        lm = load_lm(folder, dtype="float32", quantization=quantization)
        torch.manual_seed(0)
        prompted_lm = PromptedLM(lm, make_prompt(method, lm.shape)).eval()
        learned_token_loss(prompted_lm(ids, mask, keep), targets).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in prompted_lm.prompt.parameters()]))
        assert all(p.dtype == torch.float32 for p in prompted_lm.prompt.parameters())
    assert not torch.equal(*gradients)
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.99


def test_a_package_that_is_not_there_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptlit.quantization.find_spec", lambda name: None)
    with pytest.raises(
        UserMistake, match="model.quantization=nf4 needs a package more: pip install bitsandb"
    ):
        load_lm(folder, quantization="nf4")
