"""The quality benchmark on a tiny LM: what it leaves, that all meet the same rows, and that it goes on."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import chat_tokenizer
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from runs import call, make_place
from test_config import composed
from tiny import padded_rows, tiny_lm
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptlit.benchmark.__main__ import main
from ptlit.benchmark.case import Nodes
from ptlit.benchmark.judging import Judge
from ptlit.benchmark.learners import Given, Learner
from ptlit.benchmark.learners.own import OwnLearner
from ptlit.benchmark.learners.plain import PlainLearner
from ptlit.benchmark.learners.untaught import Majority, Untrained, few_shot, hard
from ptlit.benchmark.learning import LearnerAtWork, ordered
from ptlit.benchmark.quality import DONE, Quality
from ptlit.benchmark.quality_figures import rates_of, reached, rows_of
from ptlit.benchmark.quality_report import drawn, finite, rates_sentence
from ptlit.benchmark.shipped import PARTS, shipped
from ptlit.benchmark.trial import Plan, Trial
from ptlit.config import conf_folder
from ptlit.data import ChatData, ClassificationData
from ptlit.data.collate import Collate, IndexedRow
from ptlit.lm import _load_once
from ptlit.mistake import UserMistake

WORDS = ((5,), (6, 7), (6, 8), (9, 10, 11))
PLAN = Plan(
    examples=16,
    epochs=None,
    batch_size=4,
    validate_every=8,
    num_virtual_tokens=4,
    shots=2,
    limit=None,
    val_limit=None,
    test_limit=None,
    folds=None,
)


class Inline:
    """A worker in this process, with an LM of its own as each has; a process takes seconds to begin."""

    started: list[str] = []

    def __init__(self, name: str, threads: int, make: Any, *arguments: Any):
        self.started.append(name)
        _load_once.cache_clear()
        self.made = make(*arguments)

    def __call__(self, method: str, *arguments: Any) -> Any:
        return getattr(self.made, method)(*arguments)

    def __enter__(self) -> "Inline":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to end."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trials that are not taken from an earlier run."""
    monkeypatch.setattr("ptlit.benchmark.quality.Worker", Inline)
    monkeypatch.setattr(Inline, "started", [])
    return Inline.started


SMALL = [
    "benchmark=quality",
    "benchmark.seeds=[1]",
    "hydra.run.dir=run",
    "benchmark.methods=[prompt_tuning,ptuning_v2]",
]
SMALL += [
    "benchmark.examples=24",
    "benchmark.batch_size=4",
    "benchmark.validate_every=8",
    "benchmark.shots=1",
]
SMALL += ["benchmark.val_limit=8", "benchmark.test_limit=8", "benchmark.num_virtual_tokens=4"]
SMALL += ["benchmark.peft_lrs={prompt_tuning:[0.1],prefix_tuning:[0.01,0.1]}"]
SMALL += ["benchmark.lora_lrs=[0.001]", "benchmark.full_lrs=[0.001]"]
TWEETS = [
    "model=hf",
    "model.name_or_path=lm",
    "data=classification",
    "data.path=tweets.csv",
    "data.max_length=64",
]


def run(place: Path, *words: str) -> dict[str, Any]:
    call(place, main, *SMALL, *words)
    found: dict[str, Any] = json.loads((place / "run" / "benchmark.json").read_text())
    return found


def test_everybody_meets_the_same_examples_and_a_stopped_run_goes_on(
    tmp_path: Path, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_place(tmp_path)
    found = run(tmp_path, *TWEETS)
    rows = {(row["engine"], row["method"]): row for row in found["rows"]}
    prompts = [("ptlit", "prompt_tuning"), ("ptlit", "ptuning_v2")]
    prompts += [("peft", "prompt_tuning"), ("peft", "prefix_tuning")]
    untaught = [(name, None) for name in ("untrained", "hard", "few_shot", "majority")]
    assert list(rows) == [*untaught, *prompts, ("lora", None), ("full", None)]
    trials = [trial for trial in found["trials"] if trial["trainable"]]
    assert len(trials) == 7 and len({trial["order"] for trial in trials}) == 1
    for row in rows.values():
        low, high = row["macro_f1_range"]
        assert 0 <= low <= row["macro_f1"] <= high <= 1 and 0 <= row["accuracy"] <= 1
        assert row["peak_mb"] > 100
    for trial in trials:
        assert [point["examples"] for point in trial["curve"]] == [0, 8, 16, 24]
        assert trial["best"] in trial["curve"]
        seconds = [point["seconds"] for point in trial["curve"]]
        assert seconds == sorted(seconds) and seconds[-1] > seconds[0] == 0
        assert trial["curve"][-1]["cpu_seconds"] > 0 and trial["train_loss"] > 0
    assert rows["ptlit", "prompt_tuning"]["trainable"] == rows["peft", "prompt_tuning"]["trainable"] == 4 * 32
    assert rows["peft", "prompt_tuning"]["lr"] in (0.01, 0.1)
    assert rows["ptlit", "ptuning_v2"]["lr"] == composed("experiment=ptuning_v2").optim.lr
    for measure in ("macro_f1", "loss"):
        said_of = [each["method"] for each in found["reached"] if each["measure"] == measure]
        assert said_of == ["prompt_tuning", "ptuning_v2"]
    assert (tmp_path / "run" / "benchmark.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "peft prefix_tuning" in said and "PEFT's best validation macro f1" in said
    assert "PEFT's best validation loss of" in said

    file = tmp_path / "run" / DONE
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-2]) + lines[-2][:40])  # killed while it wrote
    started.clear()
    again = run(tmp_path, *TWEETS, "benchmark.engines=[majority,ptlit,peft,lora,full]")
    assert started == ["lora at 0.001, seed 1", "full at 0.001, seed 1"]
    last, first = again["trials"][-1], found["trials"][-1]
    assert last["test"] == first["test"] and last["best"]["loss"] == first["best"]["loss"]
    with pytest.raises(SystemExit, match="holds trials with other settings"):
        run(tmp_path, *TWEETS, "benchmark.examples=20")


def test_a_folder_grows_by_other_commands(tmp_path: Path, started: list[str]) -> None:
    """And what an experiment was before it changed is not in it any more."""
    make_place(tmp_path)
    run(tmp_path, *TWEETS, "benchmark.engines=[ptlit]", "benchmark.methods=[prompt_tuning]")
    found = run(tmp_path, *TWEETS, "benchmark.engines=[majority]", "benchmark.seeds=[1,2]")
    assert [(row["engine"], row["trials"]) for row in found["rows"]] == [("majority", 2), ("ptlit", 1)]

    file = tmp_path / "run" / DONE
    before, *rest = (json.loads(line) for line in file.read_text().splitlines())
    before["recipe"]["optim"]["lr"] = before["test"]["macro_f1"] = 7.0
    file.write_text("".join(json.dumps(line) + "\n" for line in (before, *rest)))
    without = run(tmp_path, *TWEETS, "benchmark.engines=[majority]")
    assert [row["engine"] for row in without["rows"]] == ["majority"]
    started.clear()
    again = run(tmp_path, *TWEETS, "benchmark.engines=[ptlit]", "benchmark.methods=[prompt_tuning]")
    assert started == ["ptlit prompt_tuning, seed 1"]
    assert [row["macro_f1"] for row in again["rows"]] == [row["macro_f1"] for row in found["rows"]]


def test_few_rows_in_folds(tmp_path: Path, started: list[str]) -> None:
    make_place(tmp_path)
    found = run(
        tmp_path,
        *TWEETS,
        "benchmark=quality_small",
        "benchmark.examples=null",
        "benchmark.epochs=2",
        "benchmark.limit=12",
        "benchmark.folds=3",
        "benchmark.engines=[majority,ptlit,peft]",
        "benchmark.methods=[ptuning_mlp]",
    )
    majority, ours, theirs = found["rows"]
    assert majority["trials"] == ours["trials"] == theirs["trials"] == 3
    assert majority["accuracy"] == 0.5 and majority["train_loss"] is None
    of_ours = [trial for trial in found["trials"] if trial["engine"] == "ptlit"]
    assert [trial["fold"] for trial in of_ours] == [0, 1, 2]
    assert all(trial["curve"][-1]["examples"] == 16 and trial["best"] is None for trial in of_ours)
    assert ours["train_loss"] > 0 and theirs["lr"] in (0.001, 0.003, 0.01) and found["reached"] == []


def test_dialogues_are_judged_by_perplexity(tmp_path: Path, started: list[str]) -> None:
    tiny_lm("qwen3", vocabulary=264).model.save_pretrained(tmp_path / "lm")
    chat_tokenizer().save_pretrained(tmp_path / "lm")
    rows = [{"instruction": f"What is {i}?", "input": "", "output": f"It is {i}."} for i in range(60)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    chats = ["model=hf", "model.name_or_path=lm", "data.path=alpaca.json", "data.max_length=200"]
    found = run(
        tmp_path,
        *chats,
        "benchmark=quality_chat",
        "benchmark.engines=[untrained,hard,majority,ptlit,peft]",
        "benchmark.peft_lrs.prefix_tuning=[0.1]",
    )
    names = [row["engine"] for row in found["rows"]]
    assert names == ["untrained", "ptlit", "ptlit", "peft", "peft"]  # no majority of texts
    for row in found["rows"]:
        assert row["perplexity"] > 1 and row["curve"][0]["perplexity"] > 1
    assert found["rows"][0]["perplexity"] == pytest.approx(perplexity_in_transformers(tmp_path), rel=1e-4)


def perplexity_in_transformers(folder: Path) -> float:
    """Of the untrained LM on the learned tokens of the test rows, a row at a time."""
    model, tokenizer = (each.from_pretrained(folder / "lm") for each in (AutoModelForCausalLM, AutoTokenizer))
    data = ChatData(tokenizer=tokenizer, path=str(folder / "alpaca.json"), max_length=200)
    data.setup()
    losses = []
    for row in data.encoded["test"]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        labels = torch.tensor(row["labels"][1:])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100])
    return float(torch.cat(losses).mean().exp())


def given(data: ClassificationData, seed: int = 1) -> Given:
    lm = tiny_lm("llama", spread=0.2)
    return Given(lm, data, data.encoded["train"], Trial("x", None, 0.01, seed, None), PLAN, None, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ClassificationData:
    place = make_place(tmp_path_factory.mktemp("place"))
    found = ClassificationData(
        tokenizer=tiny_lm("llama").tokenizer,
        path=str(place / "tweets.csv"),
        template="{text}:",
        max_length=64,
    )
    found.setup()
    return found


def test_all_are_asked_the_same(data: ClassificationData) -> None:
    """Labels of several tokens too, however the rows are padded."""
    ids, mask, _ = padded_rows()
    given_here = given(data)
    theirs = PlainLearner(given_here, given_here.lm.model.requires_grad_(True))
    with torch.no_grad():
        expected = Untrained(given(data)).word_scores(ids, mask, WORDS)
        torch.testing.assert_close(theirs.word_scores(ids, mask, WORDS), expected, rtol=1e-4, atol=1e-4)


def test_few_shot_reads_solved_rows_first(data: ClassificationData) -> None:
    learner, plain = few_shot(given(data)), Untrained(given(data))
    text = data.tokenizer.decode(learner.context)
    assert text.count(": bad\n\n") == text.count(": good\n\n") == 2 and text.endswith("\n\n")
    assert text.startswith(data.instruction)
    assert torch.equal(learner.context, few_shot(given(data)).context)
    assert not torch.equal(learner.context, few_shot(given(data, seed=2)).context)
    ids, mask, _ = padded_rows((9, 9))
    instruction = data.tokenizer(data.instruction + "\n\n", add_special_tokens=False)["input_ids"]
    assert hard(given(data)).context.tolist() == instruction == learner.context[: len(instruction)].tolist()
    for each in (learner, hard(given(data))):
        behind = torch.cat([each.context.expand(2, -1), ids], dim=1)
        with torch.no_grad():
            each.begin_judging()
            expected = plain.word_scores(behind, torch.ones_like(behind), ((5,), (6,)))
            torch.testing.assert_close(each.word_scores(ids, mask, ((5,), (6,))), expected)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")  # the benchmark validates by itself
def test_ptlit_is_judged_by_what_a_run_keeps(data: ClassificationData) -> None:
    """The average of the steps, as long as it is judged; training goes on from the last."""
    recipe = {
        **{part: OmegaConf.to_container(composed("experiment=prompt_tuning")[part]) for part in PARTS},
        "kl_weight": 0.0,
        "averaging": {"_target_": "ptlit.callbacks.averaging.Averaging", "decay": 0.5},
    }
    learner = OwnLearner(replace(given(data), recipe=recipe))
    (weight,) = learner.learned.values()
    average, steps = weight.detach().clone(), []

    def after_step(loss: float, rows: list[int]) -> None:
        steps.append(weight.detach().clone())
        kept = min(0.5, (1 + len(steps)) / (4 + len(steps)))
        average.lerp_(steps[-1], 1 - kept)
        with learner.as_kept():
            torch.testing.assert_close(weight.detach(), average)
        assert torch.equal(weight, steps[-1])

    rows: Any = data.encoded["train"][:16]
    learner.fit(DataLoader(rows, batch_size=4, collate_fn=Collate(0)), after_step)
    assert len(steps) == 4 and not torch.equal(steps[0], steps[1])
    with learner.as_kept():
        torch.testing.assert_close(weight.detach(), average)


def test_the_judge_counts_right_answers(data: ClassificationData) -> None:
    rows = list(data.encoded["test"])
    learner: Learner = Majority(given(data))
    found = Judge(rows, data.label_words, Collate(0), 4, torch.device("cpu")).judge(learner).metrics
    most = max(range(2), key=lambda label: sum(row["label"] == label for row in data.encoded["train"]))
    assert found["accuracy"] == pytest.approx(sum(row["label"] == most for row in rows) / len(rows))


def test_epochs_follow_each_other_until_the_examples_are_used_up() -> None:
    rows = [IndexedRow(input_ids=[5] * (5 + i), labels=[-100] * (5 + i), label=0, row=i) for i in range(5)]
    batches = ordered(rows, 16, 4, seed=3, stratified=True)
    met = [row for batch in batches for row in batch]
    assert len(met) == 16 and sorted(met[:5]) == sorted(met[5:10]) == [0, 1, 2, 3, 4]
    assert (
        batches
        == ordered(rows, 16, 4, seed=3, stratified=True)
        != ordered(rows, 16, 4, seed=4, stratified=True)
    )


def test_an_experiment_has_batches_of_its_own() -> None:
    """As it is trained, unless all are told theirs."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        prompt_tuning, lstm = (shipped(method) for method in ("prompt_tuning", "ptuning_lstm"))
    usual = replace(PLAN, batch_size=None)
    assert [usual.batch_of(recipe) for recipe in (prompt_tuning, lstm, None)] == [4, 8, 8]
    assert replace(PLAN, batch_size=6).batch_of(prompt_tuning) == 6


def test_the_labels_stand_in_the_batches_as_in_training() -> None:
    rows = [IndexedRow(input_ids=[5] * 9, labels=[-100] * 9, label=i % 2, row=i) for i in range(400)]

    def shares(stratified: bool) -> set[int]:
        batches = ordered(rows, 400, 4, seed=3, stratified=stratified)
        return {sum(row % 2 for row in batch) for batch in batches}

    assert shares(True) <= {1, 2, 3} and shares(False) == {0, 1, 2, 3, 4}


def trial(engine: str, lr: float | None, seed: int, *scores: float) -> dict[str, Any]:
    curve: list[dict[str, Any]] = [
        {"examples": 8 * i, "seconds": i, "cpu_seconds": i, "macro_f1": score, "loss": 1 - score}
        | {"train_loss": None}
        for i, score in enumerate(scores)
    ]
    best = max(curve, key=lambda point: point["macro_f1"])
    known = {
        "engine": engine,
        "method": "prompt_tuning",
        "lr": lr,
        "seed": seed,
        "fold": None,
        "recipe": {"optim": {"lr": 0.02}} if engine == "ptlit" else None,
        "curve": curve,
    }
    return known | {
        "best": best,
        "test": {"macro_f1": best["macro_f1"]},
        "trainable": 4,
        "train_loss": 1.0,
        "peak_mb": 2,
    }


def test_the_best_rate_on_validation_is_what_is_compared_with() -> None:
    trials = [trial("peft", 0.1, 1, 0.2, 0.9, 0.1), trial("peft", 0.1, 2, 0.2, 0.1, 0.1)]
    trials += [trial("peft", 0.01, seed, 0.2, 0.5, 0.6) for seed in (1, 2)]
    trials += [trial("ptlit", None, 1, 0.3, 0.6, 0.5), trial("ptlit", None, 2, 0.3, 0.7, 0.5)]
    peft, ours = rows_of(trials)
    assert peft["lr"] == 0.01 and ours["lr"] == 0.02 and peft["seeds"] == [1, 2]
    assert ours["macro_f1_range"] == [0.6, 0.7]
    assert [point["macro_f1"] for point in ours["curve"]] == pytest.approx([0.3, 0.65, 0.5])
    (each,) = reached([peft, ours], "macro_f1", {})
    assert (each["target"], each["peft_examples"], each["ptlit_examples"], each["fraction"]) == (
        0.6,
        16,
        8,
        0.5,
    )
    (each,) = reached([peft, ours], "loss", {})
    assert each["target"] == pytest.approx(0.4)  # the least, not the most
    assert (each["peft_examples"], each["ptlit_examples"]) == (16, 8)


def test_rates_are_compared_on_the_seeds_that_all_of_them_have() -> None:
    """A seed that all rates do well with is no merit of the rate that was tried with it alone."""
    trials = [trial("peft", 0.1, seed, 0.2, score) for seed, score in ((1, 0.8), (2, 0.3))]
    trials += [trial("peft", 0.01, 1, 0.2, 0.7), trial("peft", 0.3, 1, 0.2)]
    (row,), (tried,) = rows_of(trials), rates_of(trials)
    assert (row["lr"], row["seeds"], row["trials"], row["macro_f1"]) == (0.1, [1, 2], 2, 0.55)
    assert [tuple(each.values()) for each in tried["rates"]] == [(0.01, 0.7), (0.1, 0.8), (0.3, 0.2)]
    said = "peft prompt_tuning, macro f1 on validation by learning rate (seed 1): "
    assert rates_sentence(tried) == f"{said}0.01: 0.700, 0.1: 0.800, 0.3: 0.200."
    assert rates_of(trials[:2]) == []  # nothing to choose from


def test_where_nothing_is_validated_rates_are_compared_in_training() -> None:
    end = {"examples": 16, "seconds": 2.0, "cpu_seconds": 2.0}
    trials = [
        trial("peft", lr, 1, 0.2) | {"curve": [end], "best": None, "fold": fold, "train_loss": loss}
        for lr, losses in ((0.1, (0.5, 0.1)), (0.01, (1.0, 0.4)), (0.3, (0.2, math.nan)))
        for fold, loss in enumerate(losses)
    ]
    (row,), (tried,) = rows_of(trials), rates_of(trials)
    assert (row["lr"], row["trials"], row["train_loss"]) == (0.1, 2, 0.3)
    said = "peft prompt_tuning, loss in training by learning rate (seed 1): "
    assert rates_sentence(tried) == f"{said}0.01: 0.700, 0.1: 0.300, 0.3: diverged."


def test_the_picture_has_every_learner_on_every_axis() -> None:
    """What is compared above, accuracy below; against examples, seconds and memory."""
    trials = [
        trial("ptlit", None, 1, 0.3, 0.6, 0.5),
        trial("peft", 0.1, 1, 0.2, 0.4, 0.5),
        trial("untrained", None, 1, 0.3) | {"method": None},
    ]
    for each in trials:
        each["curve"] = [point | {"accuracy": 0.1 + point["macro_f1"]} for point in each["curve"]]
        each["test"] = {"macro_f1": 0.5, "accuracy": 0.7}
    grid = drawn(rows_of(trials), "macro_f1", "tweets").axes
    assert [axes.get_xlabel() for axes in grid[3:6]] == ["examples", "seconds", "peak MB"]
    assert [axes.get_ylabel() for axes in (grid[0], grid[3])] == [
        "validation macro f1",
        "validation accuracy",
    ]
    assert [axes.get_ylabel() for axes in (grid[2], grid[5])] == ["test macro f1", "test accuracy"]
    for axes in grid[:6]:
        assert len(axes.lines) == 3
    ours, theirs, level = grid[0].lines
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([0, 8, 16], [0.3, 0.6, 0.5])
    assert list(theirs.get_ydata()) == [0.2, 0.4, 0.5] and set(level.get_ydata()) == {0.3}
    assert list(grid[4].lines[0].get_ydata()) == pytest.approx([0.4, 0.7, 0.6])
    assert [(*line.get_xdata(), *line.get_ydata()) for line in grid[5].lines] == [(2, 0.7)] * 3


def test_what_was_best_on_validation_is_tested(tmp_path: Path) -> None:
    make_place(tmp_path)
    data = {"_target_": "ptlit.data.ClassificationData", "path": str(tmp_path / "tweets.csv")}
    model = {"_target_": "ptlit.lm.load_lm", "name_or_path": str(tmp_path / "lm")}
    nodes = Nodes(model, data | {"max_length": 64}, {}, seed=1, device="cpu")
    at_work = LearnerAtWork(Trial("peft", "prompt_tuning", 0.1, 1, None), nodes, None, PLAN)
    (learned,) = at_work.learner.learned.values()
    judge, judged = at_work.val.judge, []

    def noted(learner: Learner) -> Any:
        judged.append(learned.detach().clone())
        said = (0.0, 1.0, 0.5)[len(judged) - 1]  # of the three the second is the best
        return replace(judge(learner), score=(said, 0.0))

    at_work.val.judge = noted  # type: ignore[method-assign]
    found = at_work.learn()
    assert len(judged) == 3 and found["best"] == found["curve"][1]
    assert torch.equal(learned, judged[1]) and not torch.equal(learned, judged[2])
    assert found["test"] == at_work.test.judge(at_work.learner).metrics


def test_what_has_diverged_is_no_number() -> None:
    lost = trial("peft", 0.1, 1, 0.2, 0.9) | {"train_loss": math.nan}
    (row,) = finite(rows_of([lost]))
    assert row["train_loss"] is None and row["macro_f1"] == 0.9 and len(row["curve"]) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"methods": ["prompt_tunning"]},
            "prompt_tunning is no file of conf/prompt: did you mean prompt_tuning?",
        ),
        ({"engines": ["petf"]}, "benchmark.engines: petf is no engine: did you mean peft?"),
        ({"peft_lrs": {"ptuning_mlp": [0.1]}}, "benchmark.peft_lrs.prompt_tuning is empty: peft needs a"),
        ({"engines": ["lora"], "lora_lrs": []}, "benchmark.lora_lrs is empty: lora needs"),
        ({"examples": 0}, "benchmark.examples=0 has to be 1 or more"),
        ({"epochs": 2}, "both say how long"),
        ({"folds": 1}, "benchmark.folds=1 has to be 2 or more"),
        ({"seeds": []}, "makes no run"),
    ],
)
def test_mistakes_are_named_at_once(changes: dict[str, Any], sentence: str) -> None:
    right: dict[str, Any] = {"methods": ["prompt_tuning"], "engines": ["ptlit", "peft"], "seeds": [1]}
    right |= {"peft_lrs": {"prompt_tuning": [0.1]}, "lora_lrs": [0.1], "full_lrs": [0.1]}
    Quality(**right)
    with pytest.raises(UserMistake, match=sentence):
        Quality(**(right | changes))
