"""What we ship, we run: every file of conf/experiment composes, passes the check and builds."""

import json
from pathlib import Path

import pytest
import torch
from chats import chat_tokenizer
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from tiny import tiny_lm

from ptlit.build import build
from ptlit.config import check, conf_folder
from ptlit.loss import learned_positions, learned_token_loss

EXPERIMENTS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
OPTIMIZERS = sorted(path.stem for path in (conf_folder() / "optim").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (conf_folder() / "schedule").glob("*.yaml"))


CHATS = [name for name in EXPERIMENTS if "chat" in name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    lm = tiny_lm("llama", spread=0.2)
    lm.model.save_pretrained(folder / "lm")
    lm.tokenizer.save_pretrained(folder / "lm")
    tiny_lm("qwen3", vocabulary=264).model.save_pretrained(folder / "chat_lm")  # stands in for all of Qwen's
    chat_tokenizer().save_pretrained(folder / "chat_lm")
    rows = [{"instruction": f"What is {i}?", "input": "", "output": f"It is {i}."} for i in range(60)]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    rows = [f"flight {i} was {'late' if i % 2 else 'lovely'},{'bad' if i % 2 else 'good'}" for i in range(60)]
    (folder / "tweets.csv").write_text("\n".join(["text,label", *rows]))
    return folder


def composed(folder: Path, *overrides: str) -> DictConfig:
    """As the command would see it, but for a tiny LM and a small file."""
    on_chats = any(override == f"experiment={name}" for name in CHATS for override in overrides)
    lm, data, file = (
        ("chat_lm", "chat", "alpaca.json") if on_chats else ("lm", "classification", "tweets.csv")
    )
    small = ["model=hf", f"model.name_or_path={folder / lm}", "model.dtype=float32", "trainer=cpu"]
    small += [f"data={data}", f"data.path={folder / file}", f"data.max_length={200 if on_chats else 64}"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose(
            "train",
            [*small, f"hydra.runtime.output_dir={folder / 'run'}", *overrides],
            return_hydra_config=True,
        )
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_checks_and_builds(folder: Path, name: str) -> None:
    cfg = composed(folder, f"experiment={name}")
    check(cfg)
    training = build(cfg)
    batch = next(iter(training.data.train_dataloader()))
    keep, targets = learned_positions(batch["labels"])
    prompted_lm = training.module.prompted_lm
    loss = learned_token_loss(prompted_lm(batch["input_ids"], batch["attention_mask"], keep), targets)
    assert torch.isfinite(loss)
    assert cfg.prompt._target_.endswith(type(prompted_lm.prompt).__name__)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_optimizers_and_schedules_train(folder: Path, optimizer: str, schedule: str) -> None:
    cfg = composed(
        folder, f"optim={optimizer}", f"schedule={schedule}", "trainer.max_steps=12", "optim.lr=0.05"
    )
    with open_dict(cfg):
        cfg.callbacks = {"checkpoint": cfg.callbacks.checkpoint}
        cfg.logger = {}
        cfg.trainer.enable_progress_bar = False
    check(cfg)
    training = build(cfg)
    before = training.module.prompted_lm.prompt.eval()().detach().clone()
    rates: list[float] = []
    step = training.module.on_train_batch_end
    training.module.on_train_batch_end = lambda *batch: (  # type: ignore[method-assign]
        step(*batch),
        rates.append(training.module.lr_schedulers().get_last_lr()[0]),
    )
    training.trainer.fit(training.module, datamodule=training.data)
    assert not torch.equal(before, training.module.prompted_lm.prompt.eval()())
    assert rates[0] < rates[9]  # warm-up
    assert (rates[-1] == rates[9]) == (schedule == "constant")


def test_a_run_shorter_than_the_interval_is_validated_at_its_end(folder: Path) -> None:
    assert build(composed(folder, "trainer.max_steps=7")).trainer.val_check_interval == 7
    assert build(composed(folder, "trainer.max_steps=70")).trainer.val_check_interval == 50
