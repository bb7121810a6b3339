"""The benchmark: it measures engines that agree and refuses those that do not. Times are never asserted."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from tiny import tiny_lm
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from ptlit.benchmark import limit
from ptlit.benchmark.agreement import TOLERANCE, Disagreement, check_agreement
from ptlit.benchmark.answers import Questions
from ptlit.benchmark.case import Case, Nodes, made, prompt_node
from ptlit.benchmark.clock import Spent
from ptlit.benchmark.engines import Engine, Setup
from ptlit.benchmark.engines.full import full
from ptlit.benchmark.engines.hf_trainer import peft_trainer
from ptlit.benchmark.engines.of_peft import lora, peft
from ptlit.benchmark.engines.own import ptlit, ptlit_compiled, ptlit_concatenated, ptlit_recomputing
from ptlit.benchmark.engines.own_answers import OwnAnswers
from ptlit.benchmark.engines.padded import PaddedLoss
from ptlit.benchmark.engines.peft_answers import PeftAnswers
from ptlit.benchmark.figures import Measurement
from ptlit.benchmark.inference import compared
from ptlit.benchmark.limit import MatrixProducts, necessary_operations
from ptlit.benchmark.machine import check_peft
from ptlit.benchmark.many_prompts import check_probabilities
from ptlit.benchmark.measure import Judgement
from ptlit.benchmark.report import Report
from ptlit.benchmark.rows import AboutLM, Rows, chats
from ptlit.benchmark.speed import Speed
from ptlit.benchmark.tasks import SERVERS
from ptlit.config import conf_folder
from ptlit.mistake import UserMistake
from ptlit.overrides import preflight
from ptlit.peft_format import write_adapter
from ptlit.products import restore
from ptlit.prompt.init import start_prompt

METHODS = ("prompt_tuning", "ptuning_mlp", "ptuning_lstm", "prefix_tuning", "prefix_projection", "ptuning_v2")
LENGTHS = (9, 14, 6, 11)


def batches(count: int = 3) -> list[list[dict]]:
    generator = torch.Generator().manual_seed(3)
    ids = [
        [torch.randint(3, 259, (length,), generator=generator).tolist() for length in LENGTHS]
        for _ in range(count)
    ]
    return [
        [dict(input_ids=row, labels=[-100] * (len(row) - 2) + row[-2:], label=0, row=0) for row in rows]
        for rows in ids
    ]


def setup(method: str | None = None, layers: int = 2) -> Setup:
    lm = tiny_lm("llama", layers=layers, spread=0.2)
    torch.manual_seed(5)
    prompt = made(prompt_node(method, 6), shape=lm.shape) if method else None
    return Setup(lm, prompt, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2), batches())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make_engine", [ptlit_recomputing, ptlit_concatenated, peft, peft_trainer])
def test_engines_agree_before_and_after_training(method: str, make_engine: object) -> None:
    """Three steps on the same rows with the same optimizer lead to the same place."""
    ours, theirs = ptlit(setup(method)), make_engine(setup(method))
    for engine in (ours, theirs):
        engine.before, engine.gradients = engine.judge(batches()[0])
    torch.testing.assert_close(ours.before, theirs.before, rtol=1e-4, atol=1e-5)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in ours.gradients.items():
        torch.testing.assert_close(theirs.gradients[name], gradient, rtol=1e-3, atol=1e-5)
    for rows in batches():
        ours.step(rows)
        theirs.step(rows)
    after, _ = ours.judge(batches()[0])
    assert after < ours.before
    torch.testing.assert_close(theirs.judge(batches()[0])[0], after, rtol=1e-2, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_the_compiled_engine_agrees_too() -> None:
    before = counters["stats"]["unique_graphs"]
    test_engines_agree_before_and_after_training("ptuning_mlp", ptlit_compiled)
    assert counters["stats"]["unique_graphs"] > before


@pytest.mark.parametrize("make_engine", [lora, full])
def test_what_is_there_for_context_begins_as_the_lm_alone(make_engine: object) -> None:
    engine: Engine = make_engine(setup())
    lm = tiny_lm("llama", spread=0.2)
    plain = PaddedLoss(lm, lm.model)(batches()[0])
    torch.testing.assert_close(engine.judge(batches()[0])[0], plain)
    for rows in batches():
        engine.step(rows)
    assert engine.judge(batches()[0])[0] < plain


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_peft(method: str, tmp_path: Path) -> None:
    """Label and text, from one adapter, for texts of one length; ptlit alone may mix lengths."""
    given = setup(method)
    write_adapter(tmp_path, given.prompt, given.lm.shape, "tiny")
    texts = [row["input_ids"][-6:] for row in batches()[0]]
    first = PeftAnswers(tiny_lm("llama", spread=0.2), tmp_path, {}, Questions([texts], (), 5))
    written = first.generate(texts)
    questions = Questions([texts], ((written[0][0],), (258,)), 5)
    ours = OwnAnswers(given.lm, tmp_path, prompt_node(method, 6), questions)
    theirs = PeftAnswers(tiny_lm("llama", spread=0.2), tmp_path, {}, questions)
    ours.begin()
    assert ours.generate(texts) == written
    assert ours.classify(texts)[0] == theirs.classify(texts)[0] == (written[0][0],)
    longer = [*texts, batches()[0][1]["input_ids"]]
    assert ours.generate(longer)[:-1] == written and ours.classify(longer)[:-1] == ours.classify(texts)


@pytest.mark.parametrize("method", ["ptuning_mlp", "prefix_tuning"])
def test_all_are_as_sure_of_the_labels_of_several_tasks(method: str, tmp_path: Path) -> None:
    given, node = setup(), prompt_node(method, 6)
    for task in range(3):
        torch.manual_seed(task)
        prompt = made(node, shape=given.lm.shape)
        start_prompt(prompt, given.lm, from_="vocabulary")
        write_adapter(tmp_path / str(task), prompt, given.lm.shape, "tiny")
    adapters = [tmp_path / str(task) for task in range(3)]
    texts = [row["input_ids"][-6:] for rows in batches() for row in rows]
    tasks = [place % 3 for place in range(len(texts))]
    found = {}
    for name, engine in SERVERS.items():
        server = resolve_name(engine)(tiny_lm("llama", spread=0.2), adapters, node, ((5,), (6,), (7,)))
        server.begin()
        found[name] = server.scores(texts, tasks).softmax(1).numpy()
        shifted = server.scores(texts, [(task + 1) % 3 for task in tasks]).softmax(1).numpy()
        assert np.abs(shifted - found[name]).max() > 0.01  # each task has a prompt of its own
    case = Case("3 tasks", method, 6, 12, "bucketed")
    check_probabilities(found, case, 1e-5)
    with pytest.raises(UserMistake, match="by wrong differs from that by right by 2.0e-01, more than 1e-03"):
        check_probabilities({"right": found["ptlit"], "wrong": found["ptlit"] + 0.2}, case, 1e-3)


def test_no_speed_of_answers_that_differ() -> None:
    labels = ((5,), (6,))
    said = compared("classification", [(5,), (6,), (5,)], [(5,), (6,), (9,)], labels)
    assert said == "classification: peft generates a label for 2 of 3 texts, 2 times that of ptlit"
    with pytest.raises(UserMistake, match="another label than peft to 1 of 2 texts, so no speed is reported"):
        compared("classification", [(5,), (5,), (5,)], [(5,), (6,), (9,)], labels)
    with pytest.raises(UserMistake, match="differently after 1 of 2 texts, so no speed is reported"):
        compared("generation", [(1, 2), (3, 4)], [(1, 2), (3, 5)], labels)


def test_in_half_precision_rounding_may_decide_between_words() -> None:
    half = TOLERANCE["bfloat16"]
    said = compared("generation", [(1, 2), (3, 4)], [(1, 2), (3, 5)], (), "peft", half)
    assert said == "generation: peft writes the same tokens as ptlit after 1 of 2 texts"
    with pytest.raises(UserMistake, match="differently after 2 of 2 texts, so no speed is reported"):
        compared("generation", [(1, 2), (3, 4)], [(2, 2), (3, 5)], (), "peft", half)
    with pytest.raises(UserMistake, match="another label than peft to 1 of 3 texts, so no speed is reported"):
        compared("classification", [(5,), (5,), (5,)], [(5,), (6,), (5,)], ((5,), (6,)), "peft", half)


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_folder() / "benchmark").glob("*.yaml")))
def test_every_benchmark_passes_the_check(name: str) -> None:
    preflight([f"benchmark={name}"], "benchmark")
    with pytest.raises(UserMistake, match="benchmark.batchs is not a key of this config"):
        preflight([f"benchmark={name}", "benchmark.batchs=2"], "benchmark")


def judgement(loss: float = 1.0, **gradients: list[float]) -> Judgement:
    found = {name: np.array(value, dtype=np.float32) for name, value in gradients.items()}
    return Judgement(loss, found, "float32", None, 0.0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (judgement(1.01, a=[3.0, 4.0]), "loss of peft, 1.010000, differs from that of ptlit, 1.000000"),
        (judgement(math.nan, a=[3.0, 4.0]), "loss of peft"),
        (judgement(1.0, a=[3.0, 4.1]), "gradient of a by peft differs from that of ptlit by 2.0e-02"),
        (judgement(1.0, a=[3.0, math.nan]), "gradient of a by peft"),
        (judgement(1.0, b=[3.0, 4.0]), "peft learns"),
    ],
)
def test_no_speed_of_engines_that_differ(wrong: Judgement, sentence: str) -> None:
    right = judgement(1.0, a=[3.0, 4.0])
    check_agreement({"ptlit": right, "peft": judgement(1.0, a=[3.0, 4.0001])}, "a case", TOLERANCE["float32"])
    with pytest.raises(UserMistake, match=sentence):
        check_agreement({"ptlit": right, "peft": wrong}, "a case", TOLERANCE["float32"])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ptuning_lstm"])  # nor LSTMs
def test_necessary_operations_are_those_that_torch_counts(method: str) -> None:
    """Without padding little can be saved of a step: what is masked, and the first layer's gradients."""
    given = setup(method, layers=12)
    given.lm.model.set_attn_implementation("eager")  # the other kernels it does not count
    restore(given.lm.model)  # nor oneDNN's
    rows = [batches()[0][1]]  # one row
    engine = ptlit(given)
    with FlopCounterMode(display=False) as counter:
        engine.step(rows)
    counted = necessary_operations(given.lm, given.prompt, rows)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_of_several_rows_virtual_tokens_are_necessary_once(method: str) -> None:
    """In the linear layers; every row attends to them by itself."""
    given = setup(method)
    one, other = batches()[0][0], batches()[1][3]

    def operations(*rows: dict) -> float:
        return necessary_operations(given.lm, given.prompt, rows)

    width, virtual = limit.attention_width(given.lm.model), given.prompt.num_virtual_tokens
    runs_through = 4 * limit.linear_weights(given.lm.model) * virtual
    runs_through += 12 * width * virtual * (virtual + 1) // 2
    expected = operations(one) + operations(other) - runs_through * (method == "prompt_tuning")
    assert operations(one, other) == expected


def nodes(tmp_path: Path, rows: int = 40) -> Nodes:
    lm = tiny_lm("llama", spread=0.2)
    lm.model.save_pretrained(tmp_path / "lm")
    lm.tokenizer.save_pretrained(tmp_path / "lm")
    with (tmp_path / "tweets.csv").open("w", newline="") as file:
        tweets = [
            (f"flight {i * 7919 % 1000} was {'ever ' * (i % 6)}late", "good" if i % 2 else "bad")
            for i in range(rows)
        ]
        csv.writer(file).writerows([("text", "label"), *tweets])
    return Nodes(
        model={"_target_": "ptlit.lm.load_lm", "name_or_path": str(tmp_path / "lm")},
        data={"_target_": "ptlit.data.ClassificationData", "path": str(tmp_path / "tweets.csv")},
        optim={"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.01},
        seed=1,
        device="cpu",
    )


def test_batches_by_chance_and_by_length_hold_the_same_rows(tmp_path: Path) -> None:
    found = Rows(nodes(tmp_path)).batches(4, 3)

    def identity(kind: str) -> list[int]:
        return sorted(row["row"] for batch in found[kind] for row in batch)

    def padding(kind: str) -> int:
        lengths = [[len(row["input_ids"]) for row in batch] for batch in found[kind]]
        return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)

    assert [len(batch) for kind in found for batch in found[kind]] == [4] * 6
    assert identity("random") == identity("bucketed") and len(set(identity("random"))) == 12
    assert padding("bucketed") < padding("random")


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="has 16 training rows, too few for benchmark.batches=3"):
        Rows(nodes(tmp_path, rows=20)).batches(8, 3)


def test_chats_are_long_and_learned_at_their_end() -> None:
    rows = [dict(input_ids=list(range(i, i + 10)), labels=[-100] * 10, label=0, row=i) for i in range(90)]
    made_of = chats(rows, seed=0, shortest=50, longest=80, learned=20)
    assert len(made_of) > 8
    for row in made_of:
        assert 50 <= len(row["input_ids"]) <= 80
        assert row["labels"] == [-100] * (len(row["input_ids"]) - 20) + row["input_ids"][-20:]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ["ptuning_mpl"]}, "ptuning_mpl is no file of conf/prompt: did you mean ptuning_mlp?"),
        ({"engines": ["petf"]}, "petf is no engine: did you mean peft?"),
        ({"engines": ["lora"]}, "has to name an engine that trains a soft prompt"),
        ({"num_virtual_tokens": [20, 0]}, "benchmark.num_virtual_tokens=.20, 0. has to be 1 or more"),
        ({"passes": 0}, "benchmark.passes=.0. has to be 1 or more"),
    ],
)
def test_mistakes_are_named_at_once(changes: dict, sentence: str) -> None:
    right = {
        "methods": ["ptuning_mlp"],
        "num_virtual_tokens": [2],
        "batch_size": [4],
        "batching": ["random"],
        "engines": ["ptlit"],
        "bucketed_engines": ["ptlit"],
    }
    Speed(**right)
    with pytest.raises(UserMistake, match=sentence):
        Speed(**(right | changes))


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserMistake, match="PEFT, which is not installed: pip install peft"):
        check_peft()


def learns_one_token_less(given: Setup) -> Engine:
    """An engine that is fast by doing less."""
    assert given.prompt is not None
    engine = ptlit(given)
    hasty = engine.loss
    engine.loss = lambda rows: hasty([row | {"labels": [-100, *row["labels"][1:-1], -100]} for row in rows])
    return engine


def command(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    options = [
        "model=hf",
        "model.name_or_path=lm",
        "data=classification",
        "data.path=tweets.csv",
        "benchmark.num_virtual_tokens=[3]",
        "benchmark.batch_size=[4]",
        "benchmark.batches=2",
        "benchmark.threads=1",
        "hydra.run.dir=run",
    ]
    return subprocess.run(
        [sys.executable, "-m", "ptlit.benchmark", *options, *words],
        cwd=place,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_command_leaves_table_figures_and_plot(tmp_path: Path) -> None:
    nodes(tmp_path)
    ended = command(tmp_path, "benchmark.engines=[ptlit,peft,lora]", "benchmark.bucketed_engines=[ptlit]")
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    rows = {(row["engine"], row["batching"]): row for row in found["rows"]}
    assert list(rows) == [("ptlit", "random"), ("peft", "random"), ("lora", "random"), ("ptlit", "bucketed")]
    for row in rows.values():
        low, high = row["examples_per_cpu_second_range"]
        assert 0 < low <= row["examples_per_cpu_second"] <= high
        assert 0 < row["examples_per_second"] < row["real_tokens_per_second"]
        assert row["peak_mb"] >= row["loaded_mb"] > 100 and row["seconds_to_first_step"] > 0
        assert (row["dtype"], row["device"], row["model"], row["batch_size"]) == ("float32", "cpu", "lm", 4)
    assert rows["ptlit", "random"]["method"] == "ptuning_mlp"
    of_limit = rows["ptlit", "random"]["fraction_of_limit"]
    assert 0 < of_limit < 1 and of_limit <= rows["ptlit", "random"]["fraction_of_pytorch_limit"]
    assert rows["lora", "random"]["method"] is None and rows["lora", "random"]["fraction_of_limit"] is None
    over = [(each["over"], each["batching"], each["batching_of_peer"]) for each in found["ratios"]]
    assert over == [("peft", *kinds) for kinds in (("random", "random"),)] + [
        ("lora", "random", "random"),
        ("peft", "bucketed", "random"),
        ("lora", "bucketed", "random"),
    ]
    assert (tmp_path / "run" / "benchmark.png").stat().st_size > 1000
    assert "ptuning_mlp, P=3, batch 4" in ended.stdout and "ptlit, bucketed" in ended.stdout


def test_the_command_refuses_an_engine_that_computes_something_else(tmp_path: Path) -> None:
    nodes(tmp_path)
    wrong = "test_benchmark.learns_one_token_less"
    ended = command(tmp_path, f"benchmark.engines=[ptlit,{wrong}]", "benchmark.batching=[random]")
    assert ended.returncode == 1
    assert f"the loss of {wrong}" in ended.stderr and "no speed is reported" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run" / "benchmark.json").exists()


def test_the_rate_of_products_is_that_of_a_tenth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system books CPU time by the tick: of a single product it may miss half."""
    made, lasted = [], []

    def linear(inputs: Tensor, weight: Tensor) -> None:
        made.append(inputs)

    def spent(work, device: torch.device) -> Spent:
        before = len(made)
        work()
        lasted.append((len(made) - before) * 0.004)
        return Spent(seconds=lasted[-1], cpu_seconds=2 * lasted[-1])

    monkeypatch.setattr(limit, "spent", spent)
    monkeypatch.setattr(limit, "SHAPES", {"cpu": ((2, 3, 4),)})
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(limit, "available", lambda: False)
    rates = MatrixProducts("float32", "cpu").rates()
    assert rates.per_second == pytest.approx(2 * 2 * 3 * 4 / 0.004)
    assert rates.per_cpu_second == pytest.approx(rates.per_second / 2)
    assert sum(each >= 0.1 for each in lasted) == 6  # three, and three to warm up


def test_what_was_measured_is_told_when_engines_disagree_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Measurement(
        engine="ptlit",
        case=Case("training", "ptuning_mlp", 3, 4, "random"),
        passes=[Spent(seconds=2.0, cpu_seconds=4.0)],
        examples=8,
        real_tokens=80,
        operations=None,
        rates=[],
        peak_mb=300.0,
        loaded_mb=200.0,
        seconds_to_first_step=1.0,
    )
    with pytest.raises(Disagreement), Report(AboutLM("lm", "float32", 1), "cpu", 1, tmp_path) as report:
        report.add([measured])
        raise Disagreement("engines differ")
    told = capsys.readouterr().out
    assert "ptuning_mlp, P=3, batch 4" in told and str(tmp_path / "benchmark.json") in told
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert (row["examples_per_second"], row["examples_per_cpu_second"]) == (4.0, 2.0)
