"""What we ship, we run: every file of conf/experiment composes, passes the check and builds."""

import csv
import json
from pathlib import Path

import pytest
import torch
from chats import chat_tokenizer
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from runs import call
from tiny import tiny_lm
from transformers import AutoModelForCausalLM, BloomConfig

from ptlit.build import build
from ptlit.config import check, conf_folder
from ptlit.data.example import encode
from ptlit.lm import LMShape
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.run import open_run
from ptlit.train import main

EXPERIMENTS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
OPTIMIZERS = sorted(path.stem for path in (conf_folder() / "optim").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (conf_folder() / "schedule").glob("*.yaml"))


CHATS = [name for name in EXPERIMENTS if "chat" in name]
RAFT = "raft_twitter_complaints"


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
    lm = tiny_lm("bloom", spread=0.2)
    lm.model.save_pretrained(folder / "bloom")
    lm.tokenizer.save_pretrained(folder / "bloom")
    moods = [
        f"{i},Flight {i} is {'late' if i % 2 else 'fine'},{'' if i % 2 else 'no '}complaint"
        for i in range(50)
    ]
    (folder / "raft.csv").write_text("\n".join(["ID,Tweet text,Label", *moods]))
    rows = [f"flight {i} was {'late' if i % 2 else 'lovely'},{'bad' if i % 2 else 'good'}" for i in range(60)]
    (folder / "tweets.csv").write_text("\n".join(["text,label", *rows]))
    return folder


def composed(folder: Path, *overrides: str) -> DictConfig:
    """As the command would see it, but for a tiny LM and a small file."""
    on_chats = any(override == f"experiment={name}" for name in CHATS for override in overrides)
    lm, data, file = "lm", "classification", "tweets.csv"
    if on_chats:
        lm, data, file = "chat_lm", "chat", "alpaca.json"
    elif f"experiment={RAFT}" in overrides:
        lm, file = "bloom", "raft.csv"
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


def test_the_seed_tutorial_is_trained_from_end_to_end(folder: Path) -> None:
    """Fifty tweets, two text labels, a template that ends in a blank."""
    words = [f"experiment={RAFT}", f"model.name_or_path={folder}/bloom", "data.path=raft.csv"]
    words += ["trainer.max_steps=20", "data.folds=5", "data.fold=1", "hydra.run.dir=raft"]
    call(folder, main, *words)
    run = open_run(folder / "raft")
    assert run.label_words.words == (("complaint",), ("no complaint",))
    tokens = [run.lm.tokenizer.decode(ids) for ids in run.label_words.token_ids]
    assert tokens == [" complaint", " no complaint"]
    with (folder / "raft" / "report" / "predictions.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 10 and {row["label"] for row in answers} == {"complaint", "no complaint"}
    read = encode(run.template.example("Late again!"), run.lm.tokenizer, 256)
    assert run.lm.tokenizer.decode(read["input_ids"]) == "Tweet text : Late again! Label :"


def test_the_seed_tutorial_has_the_parameters_that_peft_counts(folder: Path) -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("train", [f"experiment={RAFT}"])
    assert (cfg.model.name_or_path, cfg.data.path) == ("bigscience/bloomz-560m", "ought/raft")
    assert cfg.data.template == "Tweet text : {text} Label : "
    sizes = {"vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16}  # bloomz-560m's
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(BloomConfig(**sizes))
        options = {key: value for key, value in cfg.prompt.items() if key != "init"}
        prompt = instantiate(options, shape=LMShape(1024, 24, 16, 64, None))
    trainable = sum(each.numel() for each in prompt.parameters())
    assert trainable == 300_288
    assert trainable + sum(each.numel() for each in lm.parameters()) == 559_514_880


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
    assert (rates[0] < rates[9]) == (cfg.schedule.num_warmup_steps > 0)
    assert (rates[-1] == rates[9]) == (schedule == "constant")


def test_a_run_shorter_than_the_interval_is_validated_at_its_end(folder: Path) -> None:
    assert build(composed(folder, "trainer.max_steps=7")).trainer.val_check_interval == 7
    assert build(composed(folder, "trainer.max_steps=70")).trainer.val_check_interval == 50
