"""A LoRA on the LM, frozen or trained with the prompt: judged by PEFT, by full precision and by the run."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHODS, make_prompt
from peft import LoraConfig, PeftModel, get_peft_model
from runs import call, train_at
from test_export import said_by_readme
from tiny import padded_rows, tiny_lm
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptlit.evaluate import main as evaluate
from ptlit.export import export
from ptlit.lm import FrozenLM, load_lm
from ptlit.lora import FrozenLora, TrainedLora, with_lora, write_lora
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.mistake import UserMistake
from ptlit.prompted_lm import PromptedLM
from ptlit.run import open_run
from ptlit.train import main as train

FAMILIES = ("gpt2", "llama", "qwen3", "bloom")
ROWS = padded_rows()

every_method = pytest.mark.parametrize("method", METHODS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def strong(family: str = "llama") -> FrozenLM:
    lm = tiny_lm(family, spread=0.3)
    return FrozenLM(lm.model.double(), lm.tokenizer)


def shaken(lm: FrozenLM) -> FrozenLM:
    """As if trained: a new LoRA does nothing yet."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in lm.trained.values():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return lm


def prompted(lm: FrozenLM, method: str) -> PromptedLM:
    torch.manual_seed(7)
    return PromptedLM(lm, make_prompt(method, lm.shape).to(lm.dtype)).eval()


def logits_of(prompted_lm: PromptedLM) -> Tensor:
    ids, mask, labels = ROWS
    return prompted_lm(ids, mask, learned_positions(labels)[0])


def loss_of(prompted_lm: PromptedLM) -> Tensor:
    return learned_token_loss(logits_of(prompted_lm), learned_positions(ROWS[2])[1])


def gradients(prompted_lm: PromptedLM) -> dict[str, Tensor]:
    learned = {name: p for name, p in prompted_lm.named_parameters() if p.requires_grad}
    return dict(zip(learned, torch.autograd.grad(loss_of(prompted_lm), list(learned.values())), strict=True))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRAs that PEFT itself made, with effect."""
    found = {}
    for family in FAMILIES:
        torch.manual_seed(5)
        config = LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", fan_in_fan_out=family == "gpt2")
        model = get_peft_model(copy.deepcopy(tiny_lm(family, spread=0.3).model), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        found[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(found[family])
    return found


@every_family
def test_a_frozen_lora_answers_as_peft_does(family: str, folders: dict[str, Path]) -> None:
    plain = strong(family)
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    lm = with_lora(plain, FrozenLora(str(folders[family])))
    ids, mask, _ = ROWS
    peft = PeftModel.from_pretrained(copy.deepcopy(plain.model), str(folders[family])).eval()
    ours = lm.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours, peft(input_ids=ids, attention_mask=mask).logits)
    alone = plain.model(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(ours, alone, rtol=0.1)
    assert plain.model.state_dict().keys() == before.keys()  # the LM that others share is as it was
    assert all(torch.equal(value, before[name]) for name, value in plain.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    assert lm.untrained is lm and lm.base is plain


@every_method
def test_a_prompt_before_a_frozen_lora_is_one_before_the_merged_lm(
    method: str, folders: dict[str, Path]
) -> None:
    plain = strong()
    lm = with_lora(plain, FrozenLora(str(folders["llama"])))
    peft = PeftModel.from_pretrained(copy.deepcopy(plain.model), str(folders["llama"]))
    merged = FrozenLM(peft.merge_and_unload())
    ours, expected = prompted(lm, method), prompted(merged, method)
    torch.testing.assert_close(logits_of(ours), logits_of(expected), rtol=1e-6, atol=1e-6)
    found, wanted = gradients(ours), gradients(expected)
    assert found.keys() == wanted.keys() and all(name.startswith("prompt.") for name in found)
    for name, each in found.items():
        torch.testing.assert_close(each, wanted[name], rtol=1e-5, atol=1e-5 * float(each.abs().max()))


@every_family
@every_method
def test_both_are_trained_packed_or_padded_recomputed_or_kept(family: str, method: str) -> None:
    """Against the route that copies the virtual tokens into every row."""
    lm = shaken(with_lora(strong(family), TrainedLora(r=3, alpha=6)))
    prompted_lm = prompted(lm, method)
    ids, mask, labels = ROWS
    keep, targets = learned_positions(labels)
    learned = {name: p for name, p in prompted_lm.named_parameters() if p.requires_grad}
    slow = learned_token_loss(prompted_lm.forward_concatenated(ids, mask, keep), targets)
    expected = dict(zip(learned, torch.autograd.grad(slow, list(learned.values())), strict=True))
    assert any("lora_A" in name for name in learned) and any("prompt." in name for name in learned)
    assert all(float(each.abs().max()) > 0 for each in expected.values())
    packs = lm.packs
    assert packs == (family != "bloom")
    for lm.may_pack in {packs, False}:
        for lm.gradient_checkpointing in (False, True):
            for name, each in gradients(prompted_lm).items():
                allowed = 1e-4 * float(expected[name].abs().max())
                torch.testing.assert_close(each, expected[name], rtol=1e-4, atol=allowed)


@every_method
def test_a_checkpoint_holds_both_and_loads_strictly(method: str) -> None:
    def new() -> PromptedLM:
        return prompted(with_lora(strong(), TrainedLora(r=2, alpha=4)), method)

    one, other = new(), new()
    shaken(one.lm)
    state = one.state_dict()
    names = {name for name, p in one.named_parameters() if p.requires_grad}
    assert names <= state.keys() and sum("lora_" in name for name in state) == 2 * 7 * 2
    assert all("lora_" in name for name in state if name.startswith("lm."))
    other.load_state_dict(state)
    torch.testing.assert_close(logits_of(one), logits_of(other))
    state.pop(next(name for name in state if "lora_" in name))
    with pytest.raises(RuntimeError, match="Missing key.*lora_"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key.*lora_"):
        prompted(strong(), method).load_state_dict(one.state_dict())


def test_without_training_it_has_no_effect_and_afterwards_the_untrained_lm_is_without_it() -> None:
    plain = strong()
    lm = with_lora(plain, TrainedLora())
    ids, mask, _ = ROWS
    before = plain.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(lm.model(input_ids=ids, attention_mask=mask).logits, before)
    shaken(lm)
    assert not torch.allclose(lm.model(input_ids=ids, attention_mask=mask).logits, before, rtol=0.1)
    assert torch.equal(lm.untrained.model(input_ids=ids, attention_mask=mask).logits, before)
    assert lm.untrained is plain


def test_its_dropout_is_for_training_alone() -> None:
    lm = shaken(with_lora(strong(), TrainedLora(dropout=0.5)))
    prompted_lm = prompted(lm, "prefix_tuning")
    assert torch.equal(logits_of(prompted_lm), logits_of(prompted_lm))
    prompted_lm.train()
    assert not torch.allclose(logits_of(prompted_lm), logits_of(prompted_lm))
    assert {name.split(".")[-2] for name, m in lm.model.named_modules() if m.training} == {"lora_dropout"}
    prompted_lm.eval()
    assert torch.equal(logits_of(prompted_lm), logits_of(prompted_lm))


def test_a_copy_for_weight_averaging_shares_what_is_frozen_alone() -> None:
    lm = shaken(with_lora(strong(), TrainedLora()))
    copied = copy.deepcopy(lm)
    assert copied.trained.keys() == lm.trained.keys()
    assert all(copied.trained[name] is not lm.trained[name] for name in lm.trained)
    frozen = {id(p) for p in lm.parameters() if not p.requires_grad}
    assert frozen == {id(p) for p in copied.parameters() if not p.requires_grad}
    assert copied.base is lm.base


def test_it_stays_in_float32_on_an_lm_in_bfloat16(tmp_path: Path) -> None:
    lm = tiny_lm("llama", spread=0.3)
    lm = with_lora(FrozenLM(lm.model.bfloat16(), lm.tokenizer), TrainedLora())
    assert {p.dtype for p in lm.trained.values()} == {torch.float32}
    assert lm.dtype == torch.bfloat16
    prompted_lm = PromptedLM(lm, make_prompt("prompt_tuning", lm.shape))
    loss_of(prompted_lm).backward()
    assert all(p.grad is not None for p in lm.trained.values())


@every_family
def test_peft_loads_the_folder_that_is_written(family: str, tmp_path: Path) -> None:
    lm = shaken(with_lora(strong(family), TrainedLora(r=3, alpha=5)))
    write_lora(tmp_path, lm)
    peft = PeftModel.from_pretrained(copy.deepcopy(lm.base.model), str(tmp_path)).eval()
    ids, mask, _ = ROWS
    ours = lm.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(peft(input_ids=ids, attention_mask=mask).logits, ours)
    again = with_lora(lm.base, FrozenLora(str(tmp_path)))
    torch.testing.assert_close(again.model(input_ids=ids, attention_mask=mask).logits, ours)


# From the command to the folder.

JOINT = ("experiment=ptuning_v2", "lora=trained", "lora.r=2", "lora.dropout=0.1", "optim.lr=0.01")
JOINT += ("schedule=constant",)


@pytest.fixture(scope="module")
def joint(place: Path) -> Path:
    return train_at(place, "joint", *JOINT, "trainer.max_steps=16")


def state_of(folder: Path, name: str = "best") -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_a_run_trains_and_keeps_both(joint: Path, place: Path) -> None:
    state = state_of(joint)
    lora_b = [value for name, value in state.items() if "lora_B" in name]
    assert len(lora_b) == 14 and all(float(each.abs().max()) > 0 for each in lora_b)
    metrics = json.loads((joint / "metrics.json").read_text())
    trained = [each.numel() for name, each in state.items() if not name.endswith(".scale.value")]
    assert metrics["parameters/trainable"] == sum(trained)
    plain = load_lm(str(place / "lm"))
    whole = sum(p.numel() for p in plain.parameters())
    assert metrics["parameters/total"] == whole + metrics["parameters/trainable"]
    assert not any("lora" in name for name, _ in plain.model.named_parameters())  # nothing has leaked


def test_the_baseline_is_the_lm_without_it(joint: Path, place: Path) -> None:
    alone = train_at(place, "alone", "experiment=ptuning_v2", "trainer.max_steps=1")
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (joint, alone))
    names = [name for name in one if name.startswith("baseline/")]
    assert len(names) > 3 and all(one[name] == other[name] for name in names)
    assert one["test/loss"] != other["test/loss"]


def test_a_stopped_run_goes_on_bit_for_bit(joint: Path, place: Path) -> None:
    cut = train_at(place, "cut", *JOINT, "trainer.max_steps=9")
    call(place, train, f"resume={cut}", "trainer.max_steps=16")
    one, other = state_of(cut, "last"), state_of(joint, "last")
    assert one.keys() == other.keys() and any("lora_" in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_folder_is_opened_with_both_and_judged_as_it_was(joint: Path, place: Path) -> None:
    run = open_run(joint)
    state = state_of(joint)
    assert all(torch.equal(p, state[f"prompted_lm.lm.model.{name}"]) for name, p in run.lm.trained.items())
    call(place, evaluate, f"run={joint}")
    files = (joint / "metrics.json", joint / "evaluation" / "test" / "metrics.json")
    metrics, judged = (json.loads(file.read_text()) for file in files)
    for name in ("loss", "accuracy", "macro_f1"):
        assert judged[f"test/{name}"] == pytest.approx(metrics[f"test/{name}"], abs=1e-6)


def test_peft_answers_with_the_two_folders_as_the_run_does(joint: Path) -> None:
    run = open_run(joint)
    row = run.lm.tokenizer("Landed early, thank you!", return_tensors="pt")
    length = max(map(len, run.label_words.token_ids))
    ours = run.prompted_lm.generate(
        row["input_ids"], row["attention_mask"], max_new_tokens=length, do_sample=False
    )
    new = ours[0, row["input_ids"].shape[1] :]
    assert said_by_readme(joint / "adapter") == run.lm.tokenizer.decode(new, skip_special_tokens=True)
    with pytest.raises(UserMistake, match="has a LoRA on its LM, which format=vllm does not take"):
        export(str(joint), str(joint.parent / "baked"), "vllm")
    with pytest.raises(UserMistake, match="serves no other prompt: export it alone"):
        export({"a": str(joint), "b": str(joint)}, str(joint.parent / "baked"))


def test_a_baked_checkpoint_has_the_lora_in_its_weights(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_at(place, "to_bake", "experiment=prompt_tuning", "lora=trained", "optim.lr=0.05")
    run = open_run(folder)
    before = {name: weight.clone() for name, weight in run.lm.model.state_dict().items()}
    export(str(folder), str(tmp_path / "baked"))
    difference = re.search(r"logits differ by (\S+) of the largest", capsys.readouterr().out)
    assert difference and float(difference[1]) < 1e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    row = AutoTokenizer.from_pretrained(tmp_path / "baked")("Landed early, thank you!", return_tensors="pt")
    baked = model(**row).logits[:, run.prompted_lm.num_virtual_tokens :, : len(run.lm.tokenizer)]
    row = run.lm.tokenizer("Landed early, thank you!", return_tensors="pt")
    with torch.no_grad():
        ours = run.prompted_lm(row["input_ids"], row["attention_mask"], row["attention_mask"].bool())
        without = PromptedLM(run.lm.base, run.prompted_lm.prompt)(
            row["input_ids"], row["attention_mask"], row["attention_mask"].bool()
        )
    torch.testing.assert_close(baked[0], ours, rtol=1e-4, atol=1e-5)
    assert (ours - without).abs().max() > 1e-3
    after = run.lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_on_a_frozen_lora_keeps_a_copy_of_it(joint: Path, place: Path, tmp_path: Path) -> None:
    lora = Path(shutil.copytree(joint / "lora", tmp_path / "lora"))
    folder = train_at(place, "frozen", "experiment=prompt_tuning", "lora=frozen", f"lora.path={lora}")
    state = state_of(folder)
    assert list(state) == [f"prompted_lm.prompt.{name}" for name in ("embedding.weight", "scale.value")]
    shutil.rmtree(lora)
    run = open_run(folder)
    assert run.lm.has_lora and not run.lm.trained
    (folder / "lora" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserMistake, match="adapter_model.safetensors is broken"):
        open_run(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peft_type": "IA3"}, "holds IA3, which is no LoRA"),
        ({"modules_to_save": ["lm_head"]}, "has trained more than LoRA matrices .modules_to_save"),
        ({"bias": "all"}, "has trained more than LoRA matrices .bias"),
        ({"init_lora_weights": "pissa"}, "has changed the LM's weights too .pissa"),
        ({"target_modules": ["nowhere"]}, "cannot be put into this LM"),
        ({"target_modules": ["q_proj"]}, "is unknown"),
        ({"r": 4}, "was trained on an LM of another shape"),
        ({"megatron_core": "evil", "megatron_config": {"a": 1}}, None),
    ],
)
def test_what_a_folder_must_be(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any], sentence: str | None
) -> None:
    lora = Path(shutil.copytree(folders["llama"], tmp_path / "lora"))
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | change))
    if sentence is None:  # what PEFT would import for it is not read
        with_lora(strong(), FrozenLora(str(lora)))
        return
    with pytest.raises(UserMistake, match=sentence):
        with_lora(strong(), FrozenLora(str(lora)))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lora=frozen"], "lora.path has no value"),
        (["lora=frozen", "lora.path=nowhere"], "lora.path=nowhere is no adapter of PEFT's"),
        (["lora=trained", "lora.r=0"], "lora.r=0 must be 1 or more"),
        (["lora=trained", "lora.rank=4"], "lora.rank"),
        (["lora=trained", "lora.target_modules=[nowhere]"], "cannot be put into this LM"),
    ],
)
def test_mistakes_of_a_command_line(place: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit, match=sentence):
        train_at(place, "mistaken", "experiment=prompt_tuning", *words)
