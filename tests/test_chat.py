"""Chats, from training them to talking with them: judged by PEFT and plain transformers."""

import csv
import functools
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from chats import QWEN2_5, chat_tokenizer, dialogue
from methods import make_prompt
from peft import PeftModel
from runs import call
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_lm
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptlit.chat import Readable
from ptlit.chat import main as chat
from ptlit.data import ChatData, ChatTemplate
from ptlit.evaluate import main as evaluate
from ptlit.loss import divergence, learned_positions
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.prompted_lm import PromptedLM
from ptlit.replies import generation
from ptlit.run import open_run
from ptlit.run_folder import named_folders
from ptlit.teacher import Teacher
from ptlit.train import main as train
from ptlit.voice import Voice

SYSTEM = "Be kind."
TOKENS = 264  # bytes, and the marks of the templates


def write_chats(file: Path, count: int = 40) -> Path:
    rows = [{"messages": dialogue(1 + i % 2, f"no. {i * 7919 % 1000}")} for i in range(count)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    tiny_lm("llama", vocabulary=TOKENS, spread=0.2).model.save_pretrained(folder / "lm")
    chat_tokenizer().save_pretrained(folder / "lm")
    write_chats(folder / "dialogues.jsonl")
    return folder


def train_at(place: Path, name: str, *words: str) -> Path:
    options = ["data.path=dialogues.jsonl", "model=hf", "model.name_or_path=lm", f"data.system='{SYSTEM}'"]
    options += ["data.max_length=200", "trainer.max_steps=8", "trainer.val_check_interval=4", "optim.lr=0.05"]
    options += ["prompt.num_virtual_tokens=4", "callbacks.chat_report.num_rows=2", f"hydra.run.dir={name}"]
    options += ["callbacks.chat_report.max_new_tokens=6"]
    call(place, train, *options, *words)
    return place / name


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    return train_at(place, "polite", "experiment=chat_ptuning", "data=chat")


@pytest.fixture(scope="module")
def deep(place: Path) -> Path:
    return train_at(place, "rude", "experiment=chat_ptuning_v2", "data.learn=last_reply", "kl_weight=0.5")


def metrics_of(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text())


def in_peft(run: Path, place: Path) -> PeftModel:
    lm = AutoModelForCausalLM.from_pretrained(place / "lm")
    return PeftModel.from_pretrained(lm, str(run / "adapter")).eval()


def rows_of(place: Path) -> dict[str, list[list[dict[str, str]]]]:
    data = ChatData(tokenizer=chat_tokenizer(), path=str(place / "dialogues.jsonl"), system=SYSTEM)
    data.setup()
    return {split: [row["messages"] for row in rows] for split, rows in data.rows.items()}


def perplexity(lm: torch.nn.Module, tokenizer: object, dialogues: list, only_last: bool = False) -> float:
    """Reply by reply, with nothing but transformers: each read behind apply_chat_template's own ids."""
    losses: list[float] = []
    for messages in dialogues:
        places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for place in places[-1:] if only_last else places:
            read = tokenizer.apply_chat_template(
                messages[:place], add_generation_prompt=True, return_dict=False
            )
            reply = tokenizer.encode(messages[place]["content"] + "<|im_end|>", add_special_tokens=False)
            with torch.no_grad():
                logits = lm(input_ids=torch.tensor([[*read, *reply]])).logits[0, -len(reply) - 1 : -1]
            losses += (-logits.log_softmax(-1)[range(len(reply)), reply]).tolist()
    return math.exp(sum(losses) / len(losses))


def test_perplexities_are_those_of_peft_and_of_the_plain_lm(trained: Path, deep: Path, place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "lm")
    test = rows_of(place)["test"]
    plain = AutoModelForCausalLM.from_pretrained(place / "lm")
    for run, only_last in ((trained, False), (deep, True)):
        metrics = metrics_of(run)
        theirs = perplexity(in_peft(run, place), tokenizer, test, only_last)
        assert metrics["test/perplexity"] == pytest.approx(theirs, rel=1e-3)
        untrained = perplexity(plain, tokenizer, test, only_last)
        assert metrics["baseline/hard_prompt/perplexity"] == pytest.approx(untrained, rel=1e-3)
        assert metrics["test/perplexity"] < 0.9 * metrics["baseline/hard_prompt/perplexity"]


def test_forgetting_is_measured_on_the_greedy_replies_of_the_plain_lm(trained: Path, place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "lm")
    plain, peft = AutoModelForCausalLM.from_pretrained(place / "lm"), in_peft(trained, place)
    losses: dict[str, list[float]] = {"untrained": [], "trained": []}
    for messages in rows_of(place)["test"][:2]:
        read = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, return_tensors="pt")
        said = plain.generate(**read, do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.eos_token_id)
        count = said.shape[1] - read["input_ids"].shape[1]
        for name, lm in (("untrained", plain), ("trained", peft)):
            with torch.no_grad():
                logits = lm(input_ids=said).logits[0, -count - 1 : -1]
            losses[name] += (-logits.log_softmax(-1)[range(count), said[0, -count:]]).tolist()
    for name, each in losses.items():
        measured = metrics_of(trained)[f"forgetting/perplexity_{name}"]
        assert measured == pytest.approx(math.exp(sum(each) / len(each)), rel=1e-3)


def test_the_run_folder_tells_all_of_a_chat(trained: Path, deep: Path) -> None:
    metrics = metrics_of(trained)
    names = {
        f"{split}/{name}" for split in ("val", "test") for name in ("perplexity", "token_accuracy", "loss")
    }
    assert names | {"baseline/hard_prompt/token_accuracy"} <= metrics.keys()
    assert not any("majority" in name or "macro_f1" in name for name in metrics)
    with (trained / "metrics.csv").open() as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert metrics["val/loss"] == pytest.approx(min(losses), abs=1e-5)
    with (deep / "metrics.csv").open() as file:
        moved = [float(row["train/kl"]) for row in csv.DictReader(file) if row["train/kl"]]
    assert len(moved) == 8 and min(moved) > 0
    tags: set[str] = set()
    for path in (trained / "tensorboard").glob("events*"):
        events = EventAccumulator(str(path))
        events.Reload()
        tags |= {*events.Tags()["tensors"], *events.Tags()["scalars"]}
    assert {"test/replies/text_summary", "val/perplexity", "forgetting/perplexity_trained"} <= tags
    assert (trained / "curves.png").is_file()


def test_it_goes_on_from_where_it_ended(trained: Path, place: Path, capsys: pytest.CaptureFixture) -> None:
    """Twelve steps at once, and eight followed by four: the same prompt."""
    schedule = "schedule=constant"  # a cosine would know of its end
    whole = train_at(place, "whole", "experiment=chat_ptuning", schedule, "trainer.max_steps=12")
    said = capsys.readouterr().out
    for line in ("trained prompt", "untrained LM   ", "token accuracy", "the untrained LM's own replies"):
        assert line in said
    cut = train_at(place, "cut", "experiment=chat_ptuning", schedule)
    call(place, train, "resume=cut", "trainer.max_steps=12")
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, cut)]
    ours, theirs = (state["state_dict"] for state in states)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_evaluate_finds_the_numbers_of_training(trained: Path, place: Path) -> None:
    call(place, evaluate, "run=polite")
    found = json.loads((trained / "evaluation" / "test" / "metrics.json").read_text())
    for name in ("perplexity", "token_accuracy", "loss"):
        assert found[f"test/{name}"] == pytest.approx(metrics_of(trained)[f"test/{name}"], rel=1e-5)


def asked(place: Path, capsys: pytest.CaptureFixture, typed: str, *words: str) -> list[str]:
    """What comes back through the pipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(typed))
        call(place, chat, "max_new_tokens=12", *words)
    said, errors = capsys.readouterr()
    assert "Traceback" not in errors
    return [line for line in lines_of(said.removesuffix("\n")) if not line.startswith("Loading")]


def replied(lm: torch.nn.Module, place: Path, questions: list[str], history: list | None = None) -> list[str]:
    """Greedy, by transformers' own generate; `history` holds the replies that count, else its own do."""
    tokenizer = AutoTokenizer.from_pretrained(place / "lm")
    messages, replies = [{"role": "system", "content": SYSTEM}], []
    for i, question in enumerate(questions):
        messages.append({"role": "user", "content": question})
        read = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        whole = lm.generate(**read, do_sample=False, max_new_tokens=12, eos_token_id=tokenizer.eos_token_id)
        new = whole[0, read["input_ids"].shape[1] :]
        replies.append(tokenizer.decode(new, skip_special_tokens=True).strip())
        messages.append({"role": "assistant", "content": history[i] if history else replies[-1]})
    return replies


def lines_of(*replies: str) -> list[str]:
    """A reply of random bytes may hold line ends, and control characters, which a terminal is spared."""
    kept = (
        "".join(c for c in reply if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0")) for reply in replies
    )
    return [line for reply in kept for line in f"{reply}\n".splitlines()]


def test_a_piped_chat_answers_as_peft_does(
    trained: Path, deep: Path, place: Path, capsys: pytest.CaptureFixture
) -> None:
    questions = ["What is no. 7?", "And no. 8?"]
    for run in (trained, deep):
        said = asked(place, capsys, "\n".join(questions), f"run={run.name}")
        expected = replied(in_peft(run, place), place, questions)
        assert [line.strip() for line in said] == [line.strip() for line in lines_of(*expected)]


def test_the_untrained_lm_replies_beside_it_to_the_same_dialogue(
    trained: Path, place: Path, capsys: pytest.CaptureFixture
) -> None:
    questions = ["What is no. 7?", "And no. 8?"]
    ours = replied(in_peft(trained, place), place, questions)
    theirs = replied(AutoModelForCausalLM.from_pretrained(place / "lm"), place, questions, history=ours)
    said = asked(place, capsys, "\n".join(["/base", *questions]), "run=polite")
    pairs = [
        f"{name}: {reply}"
        for pair in zip(ours, theirs, strict=True)
        for name, reply in zip(("polite", "untrained LM"), pair, strict=True)
    ]  # noqa: E501
    assert said == ["(the untrained LM replies too, to the same dialogue)", *lines_of(*pairs)]


def test_several_prompts_by_name(
    trained: Path, deep: Path, place: Path, capsys: pytest.CaptureFixture
) -> None:
    typed = "Hi\n/reset\n/use b\nHi\n/use c\n/what\n/help\n/quit\nnever read"
    said = asked(place, capsys, typed, "run={a: polite, b: rude}")
    one, other = (replied(in_peft(run, place), place, ["Hi"])[0] for run in (trained, deep))
    assert one != other
    start = [*lines_of(one), "(forgotten)", "(b goes on)", *lines_of(other)]
    assert [line.strip() for line in said[: len(start)]] == [line.strip() for line in start]
    rest = said[len(start) :]
    assert rest[0] == "(the prompts are a, b; now b)" and rest[1].startswith("(there is no /what")
    assert rest[-1].startswith("/quit")
    said = asked(place, capsys, "/use", "run=polite,rude")
    assert said == ["(the prompts are polite, rude; now polite)"]
    assert list(named_folders(["x/one/1", "x/two/1", "y"])) == ["one/1", "two/1", "y"]


def test_samples_depend_on_the_seed_alone(trained: Path, place: Path, capsys: pytest.CaptureFixture) -> None:
    options = ("run=polite", "temperature=2.0", "top_k=100", "top_p=0.95")
    first, again, other = (asked(place, capsys, "Hi\nHo", *options, f"seed={seed}") for seed in (1, 1, 2))
    assert first == again != other


def test_a_process_of_its_own(trained: Path, place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptlit.chat", "run=polite", "max_new_tokens=12"],
        input="What is no. 7?\n/quit\n",
        cwd=place,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = replied(in_peft(trained, place), place, ["What is no. 7?"])
    assert done.stdout.split("\n", 1)[1].strip() == "\n".join(lines_of(*expected)).strip()
    assert not (place / "outputs").exists()


def voice_of(run: Path, max_new_tokens: int = 12) -> Voice:
    opened = open_run(run)
    template = ChatTemplate(opened.lm.tokenizer)
    settings = generation(template.stop_ids, template.stop_strings, 0, max_new_tokens)
    return Voice("it", opened.prompted_lm, template, settings, SYSTEM)


def test_the_prefix_is_computed_once(trained: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    voice = voice_of(trained)
    calls: list[object] = []
    voice.prompted_lm.prompt.register_forward_hook(lambda *call: calls.append(call))
    for _ in range(3):
        voice.reply([{"role": "user", "content": "Hi"}])
    assert len(calls) == 1


def test_a_long_chat_loses_its_oldest_turns(
    trained: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    voice = voice_of(trained)
    history = [*dialogue(9, "it"), {"role": "user", "content": "Now?"}]
    kept = voice.fitting(history)
    start = len(history) - len(kept)
    assert start > 0 and start % 2 == 0 and kept == history[start:]
    assert 4 + len(voice.read(kept)) + 12 <= 256 < 4 + len(voice.read(history[start - 2 :])) + 12
    assert voice.read(kept) == voice.template.ids([{"role": "system", "content": SYSTEM}, *kept])
    with pytest.raises(UserMistake, match="the LM reads 256 with its reply: say it shorter"):
        voice.fitting([{"role": "user", "content": "x" * 300}])


def test_a_reply_ends_where_a_turn_of_several_tokens_does(
    trained: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    voice = voice_of(trained)
    tokenizer = voice.template.tokenizer
    letters = tokenizer("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False)["input_ids"]
    voice.settings.suppress_tokens = sorted({*range(len(tokenizer))} - {*letters})
    asked = [{"role": "user", "content": "Hi"}]
    free = voice.reply(asked)
    assert len(free) == 12
    voice.template.end_of_turn = end = free[-3:]
    assert voice.template.stop_strings == [end]
    voice.settings.stop_strings = voice.template.stop_strings
    capsys.readouterr()
    assert voice.reply(asked, Readable(voice.template)) == free[: free.index(end)]
    assert capsys.readouterr().out == free[: free.index(end)] + "\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run=nowhere"], "there is no such folder"),
        (["run=polite", "temperature=-1"], "temperature=-1 must be 0 .greedy. or more"),
        (["run=polite", "top_p=0"], "top_p=0 must be above 0"),
        (
            ["run=polite", "max_tokens=3"],
            "max_tokens is not a key of this config: did you mean max_new_tokens",
        ),
        ([], "run has no value: give run=..."),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    trained: Path, place: Path, words: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit, match=expected):
        call(place, chat, *words)


def test_a_run_that_learned_labels_is_refused(place: Path) -> None:
    rows = [f"flight {i} was {'late' if i % 2 else 'lovely'},{'bad' if i % 2 else 'good'}" for i in range(60)]
    (place / "tweets.csv").write_text("\n".join(["text,label", *rows]))
    options = ["experiment=prompt_tuning", "data=classification", "data.path=tweets.csv", "model=hf"]
    options += ["model.name_or_path=lm", "data.max_length=64", "trainer.max_steps=1", "hydra.run.dir=moods"]
    call(place, train, *options)
    with pytest.raises(SystemExit, match="run=moods has learned to choose labels, not to reply"):
        call(place, chat, "run=moods")


def test_a_monitor_that_is_not_measured_is_told_before_training(place: Path) -> None:
    options = ["experiment=chat_ptuning", "data.path=dialogues.jsonl", "model=hf", "model.name_or_path=lm"]
    with pytest.raises(SystemExit, match="monitor=val/macro_f1 is not measured on this data.*callbacks=chat"):
        call(place, train, *options, "data.max_length=200", "callbacks=default", "hydra.run.dir=wrong")


def test_divergence_is_the_mean_kl_from_the_untrained_lm() -> None:
    torch.manual_seed(0)
    logits, own = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    p, q = own.softmax(-1), logits.softmax(-1)
    by_hand = (p * (p / q).log()).sum() / 5
    assert float(divergence(logits, own)) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(divergence(own, own)) == pytest.approx(0, abs=1e-6)


def test_the_kl_term_keeps_the_prompt_near_the_untrained_lm(tmp_path: Path) -> None:
    lm = tiny_lm("llama", vocabulary=TOKENS, spread=0.2)
    file = write_chats(tmp_path / "mine.jsonl")
    data = ChatData(tokenizer=chat_tokenizer(), path=str(file), system=SYSTEM, max_length=200)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    keep, _ = learned_positions(batch["labels"])
    moved = {}
    for weight in (0.0, 20.0):
        torch.manual_seed(0)
        prompted_lm = PromptedLM(lm, make_prompt("prefix_tuning", lm.shape))
        module = SoftPromptModule(
            prompted_lm, functools.partial(torch.optim.AdamW, lr=0.05), kl_weight=weight
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=15,
            max_epochs=-1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=data)
        with torch.no_grad():
            logits = prompted_lm(batch["input_ids"], batch["attention_mask"], keep)
            own = PromptedLM(lm, None)(batch["input_ids"], batch["attention_mask"], keep)
        moved[weight] = float(divergence(logits, own))
    assert moved[20.0] < 0.5 * moved[0.0]


def test_a_run_teaches_those_that_read_dialogues_as_it_does(trained: Path, place: Path) -> None:
    def data(**options: object) -> ChatData:
        file = str(place / "dialogues.jsonl")
        found = ChatData(
            tokenizer=chat_tokenizer(), path=file, **({"system": SYSTEM, "max_length": 200} | options)
        )
        found.setup()
        return found

    teacher = Teacher(str(trained))
    lm = open_run(trained).lm
    found = teacher.reference(lm, data())
    assert found is not None and found.prompted_lm.lm is lm
    for options in ({"system": None}, {"chat_template": QWEN2_5}):
        with pytest.raises(UserMistake, match="the chat template and data.system of that one"):
            teacher.reference(lm, data(**options))


def test_a_run_keeps_a_template_that_lay_in_a_file(place: Path) -> None:
    (place / "mine.jinja").write_text(QWEN2_5)
    folder = train_at(
        place, "own", "experiment=chat_ptuning", "data.chat_template=mine.jinja", "trainer.max_steps=1"
    )
    (place / "mine.jinja").unlink()
    assert open_run(folder).cfg.data.chat_template == QWEN2_5


def test_a_run_whose_template_lay_in_a_file_goes_on_in_any_folder(place: Path, tmp_path: Path) -> None:
    """With the text that it began with, whatever stands in it."""
    odd = QWEN2_5 + r"""{# it's "odd": $ {text} \\ \' \n ä #}"""
    (place / "odd.jinja").write_text(odd)
    begun = ["experiment=chat_ptuning", "data.chat_template=odd.jinja", "trainer.max_steps=1"]
    folder = train_at(place, "odd", *begun, f"model.name_or_path={place}/lm")
    (place / "odd.jinja").unlink()
    for steps in (2, 3):
        call(tmp_path, train, f"resume={folder}", f"trainer.max_steps={steps}")
        assert open_run(folder).cfg.data.chat_template == odd
