"""Mistakes are named before anything is loaded: all of them at once, and with what was probably meant."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.fabric.utilities.seed import max_seed_value
from omegaconf import DictConfig

from ptlit import lm
from ptlit.config import LARGEST_SEED, check, conf_folder
from ptlit.ending import ended_by_epochs
from ptlit.mistake import UserMistake
from ptlit.overrides import preflight
from ptlit.quoting import paths_quoted
from ptlit.signature import fits, option_mistakes

EXPERIMENTS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def no_lm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("an LM was loaded")

    monkeypatch.setattr(lm, "_load_once", refuse)


class Unannotated(torch.optim.AdamW):
    def __init__(self, params, lr=0.001, weight_decay=0.0, betas=(0.9, 0.999)):  # type: ignore[no-untyped-def]
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=betas)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("train", list(overrides))


def complaints(*overrides: str) -> list[str]:
    """What check() says, a line each."""
    try:
        check(composed(*overrides))
    except UserMistake as mistake:
        return str(mistake).splitlines()
    return []


def refusals(*argv: str) -> list[str]:
    """What preflight() says, a line each."""
    try:
        preflight(argv)
    except UserMistake as mistake:
        return str(mistake).splitlines()
    return []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_is_shipped_is_right(experiment: str) -> None:
    assert complaints(f"experiment={experiment}", "trainer=cpu") == []  # a GPU is not everywhere


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("prompt.num_virtual_tokens=abc", "prompt.num_virtual_tokens=abc must be a whole number."),
        ("prompt.num_virtual_tokens=true", "prompt.num_virtual_tokens=true must be a whole number."),
        ("prompt.num_virtual_tokens=2.5", "prompt.num_virtual_tokens=2.5 must be a whole number."),
        ("optim.lr=fast", "optim.lr=fast must be auto or a number."),
        ("optim.lr=autp", "optim.lr=autp must be auto or a number: did you mean auto?"),
        ("optim.weight_decay=auto", "optim.weight_decay=auto must be a number."),
        ("optim.betas=[0.9]", "optim.betas=[0.9] must be a list of 2."),
        ("trainer.max_steps=many", "trainer.max_steps=many must be a whole number."),
        ("trainer.gradient_clip_val=few", "trainer.gradient_clip_val=few must be a number or null."),
        ("trainer.enable_model_summary=1", "trainer.enable_model_summary=1 must be true or false or null."),
        ("data.on_bad_row=skp", "data.on_bad_row=skp must be one of error, skip: did you mean skip?"),
        (
            "data.label_words={a: 3}",
            "data.label_words={a: 3} must be a mapping to text or a list, each text or null.",
        ),
        ("seed=-1", "seed=-1 must be a whole number, 0 or more."),
        ("seed=4294967296", "seed=4294967296 must be 4294967295 or less."),
        ("loss.label_weight=-1", "loss.label_weight=-1 must be 0 or more."),
        ("loss.label_weight=much", "loss.label_weight=much must be a number."),
        (
            "loss.label_smoothing=1",
            "loss.label_smoothing=1 must be a number from 0 up to, not including, 1.",
        ),
        ("kl_weight=-1", "kl_weight=-1 must be a number, 0 or more."),
        (
            "drop_virtual_tokens=1.0",
            "drop_virtual_tokens=1.0 must be a number from 0 up to, not including, 1.",
        ),
        ("ensemble=0", "ensemble=0 must be a whole number, 1 or more."),
        ("ensemble=1.5", "ensemble=1.5 must be a whole number, 1 or more."),
        ("distill.run=nowhere", "distill.run=nowhere is no run folder: it has no config.yaml."),
        ("distill.weight=-1", "distill.weight=-1 must be 0 or more."),
        ("distill.temperature=0", "distill.temperature=0 must be above 0."),
        ("seed=soon", "seed=soon must be a whole number, 0 or more."),
        ("test=never", "test=never must be true or false."),
        ("optim.lr=0", "optim.lr=0 must be above 0."),
        ("trainer.max_steps=0", "trainer.max_steps=0 must be 1 or more, or -1 for no limit."),
        ("data.batch_size=0", "data.batch_size=0 must be at least 1."),
        (
            "prompt.num_virtual_tokens=0",
            "prompt.num_virtual_tokens=0 leaves nothing to train: give 1 or more.",
        ),
        ("prompt.init.from=txt", "prompt.init.from=txt is not a start: did you mean text?"),
        (
            "+prompt.init.txt=hello",
            "prompt.init.txt is not an option of prompt.init: did you mean prompt.init.text?",
        ),
        (
            "+optim.weight_dcay=0.1",
            "optim.weight_dcay is not an option of AdamW: did you mean optim.weight_decay?",
        ),
        ("+optm={lr: 1}", "optm is not a key of this config: did you mean optim?"),
        ("model=hf", "model.name_or_path has no value: give model.name_or_path=... (text)."),
        ("~data.path", "data.path is missing: give data.path=... (text)."),
        ("~trainer", "trainer is left out: give trainer=... (a file of conf/trainer)."),
        (
            "~optim",  # the experiment's optim.lr remains
            "optim has no _target_, so nothing says what it is: give optim=... (a file of conf/optim).",
        ),
        ("+callbacks.mine={a: 1}", "callbacks.mine has no _target_, so nothing says what it is."),
        ("data.path=${no.such}", "data.path=${no.such} refers to a key that this config does not have."),
        (
            "prompt._target_=ptlit.prompt.PtuningLst",
            "prompt._target_=ptlit.prompt.PtuningLst does not exist: did you mean ptlit.prompt.PtuningLstm?",
        ),
        (
            "logger.csv._target_=no_such.Logger",
            "logger.csv._target_=no_such.Logger cannot be imported: No module named 'no_such'.",
        ),
        (
            "+trainer.limit_test_batches=2",
            "trainer.limit_test_batches: one Trainer trains and another tests: give data.test_limit.",
        ),
        (
            "callbacks.checkpoint.mode=[max]",
            "callbacks.checkpoint.mode=[max] must be one of min, max: did you mean max?",
        ),
        (
            "schedule.name=warmup_stable_decay",
            "schedule: get_wsd_schedule() missing 1 required positional argument: 'num_decay_steps'; what "
            "one kind alone has stands in +schedule.scheduler_specific_kwargs={...}.",
        ),
        (
            "schedule.name=greedy",
            "schedule: GreedyLR waits for validations, and here rates change with every step: choose "
            "schedule=linear, cosine or constant.",
        ),
    ],
)
def test_one_mistake_is_one_sentence(override: str, sentence: str) -> None:
    assert complaints(override) == [sentence]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_rate_may_be_left_to_ptlit(optimizer: str) -> None:
    assert complaints(f"optim={optimizer}", "optim.lr=auto") == []
    assert len(complaints(f"optim={optimizer}", "optim.lr=auto", "optim.weight_decay=-1")) == 1


STEPS = ("schedule._target_=torch.optim.lr_scheduler.StepLR", "~schedule.name", "~schedule.num_warmup_steps")


@pytest.mark.parametrize(
    "words",
    [
        ["~schedule"],
        [*STEPS, "+schedule.step_size=3"],
        ["schedule.name=warmup_stable_decay", "+schedule.scheduler_specific_kwargs.num_decay_steps=2"],
    ],
)
def test_schedules_of_others(words: list[str]) -> None:
    assert complaints(*words) == []


def test_a_schedule_lacks_what_it_needs() -> None:
    (said,) = complaints(*STEPS)
    assert "schedule.step_size is missing" in said


@pytest.mark.parametrize("rate", ["0.1", "auto", "1e-3"])
def test_an_optimizer_that_says_nothing_of_types_is_believed(rate: str) -> None:
    assert complaints("optim._target_=test_config.Unannotated", f"optim.lr={rate}") == []


def test_all_mistakes_at_once() -> None:
    said = complaints(
        "prompt.num_virtual_tokens=abc",
        "prompt.init.from=txt",
        "optim.lr=fast",
        "+optim.lrr=1",
        "trainer.max_steps=many",
        "data.batch_size=0",
        "data.limit=0",
        "seed=-1",
    )
    assert [line.split("=")[0].split(" ")[0] for line in said] == [
        "data.batch_size",
        "data.limit",
        "prompt.num_virtual_tokens",
        "prompt.init.from",
        "optim.lr",
        "optim.lrr",
        "trainer.max_steps",
        "seed",
    ]


def test_dialogues_have_no_labels_to_rank() -> None:
    said = complaints("experiment=chat_ptuning", "loss.label_weight=0.5")
    assert said == ["loss.label_weight=0.5 ranks labels, and dialogues have none: leave it out."]
    assert complaints("loss.label_weight=0.5") == complaints("loss=null") == []


def test_a_constructor_that_stops_at_its_first_objection_is_heard_to_the_end() -> None:
    said = complaints("prompt.num_virtual_tokens=0", "prompt.num_layers=1", "prompt.dropout=0.2")
    assert len(said) == 2 and "prompt.num_layers=1 has no between" in said[1]


def test_a_choice_is_held_against_the_enum_it_stands_for() -> None:
    (said,) = complaints("schedule.name=cosin")
    assert said.endswith("did you mean cosine?")


def test_gpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert complaints("trainer=gpu") == [
        "trainer.accelerator=gpu asks for a GPU and none is found: use trainer=cpu."
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert complaints("trainer=gpu") == []
    assert complaints("trainer=gpu", "trainer.devices=4") == [
        "trainer.devices=4 is more than the GPUs found: use trainer.devices=2."
    ]


@pytest.mark.parametrize(
    ("value", "kind", "verdict"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (None, int | None, True),
        (None, int, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], list[int], True),
        ([1, "x"], list[int], False),
        ([0.9, 1], tuple[float, float], True),
        ({"a": 1}, dict[str, int], True),
        ("x", float | torch.Tensor, False),
        ("x", torch.Tensor, None),
        ({"_target_": "a.B"}, torch.Tensor, True),
        ("here", Path | None, True),
    ],
)
def test_values_and_annotations(value: object, kind: object, verdict: bool | None) -> None:
    assert fits(value, kind) is verdict


def test_annotations_that_cannot_be_resolved_accept_anything() -> None:
    def odd(size: "int", other: "NoSuchName", rest=None): ...  # type: ignore[name-defined] # noqa: F821

    said = option_mistakes("part", {"size": "x", "other": 3, "rest": 4}, odd)
    assert said == ["part.size=x must be a whole number."]


def test_a_target_without_a_signature_accepts_anything() -> None:
    assert option_mistakes("part", {"any": 3}, dict) == []


def test_a_right_command_line_passes() -> None:
    assert refusals("experiment=prompt_tuning", "prompt.num_virtual_tokens=5") == []
    assert refusals("hydra.run.dir=/tmp/there", "hydra.verbose=true", "resume=some/run") == []
    assert refusals("sweep=defaults", "optim.lr=0.1", "resume=a/trial") == []  # as the trial's notes have it
    assert refusals("-m", "experiment=prompt_tuning,ptuning_mlp", "optim.lr=0.1,0.01") == []
    assert refusals("-m", "sweep=virtual_tokens") == []
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("flag", [["--help"], ["--hydra-help"], ["--cfg", "job"], ["--info", "defaults"]])
def test_questions_pass_untouched(flag: list[str]) -> None:
    assert refusals(*flag, "no.such.key=1") == []


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lr=0.1", "lr is not a key of this config: did you mean optim.lr?"),
        (
            "num_virtual_tokns=5",
            "num_virtual_tokns is not a key of this config: did you mean prompt.num_virtual_tokens?",
        ),
        ("optim.lrr=1", "optim.lrr is not a key of this config (optim=adamw): did you mean optim.lr?"),
        ("~optim.beta", "optim.beta is not a key of this config (optim=adamw): did you mean optim.betas?"),
        ("hydra.run.dirr=x", "hydra.run.dirr is not a key of this config: did you mean hydra.run.dir?"),
        ("lora.r=8", "lora.r is not a key of this config: lora=trained would have it."),
        (
            "experiment.optim.lr=1",
            "experiment.optim.lr is not a key of this config (experiment=ptuning_lstm): "
            "did you mean optim.lr?",
        ),
        (
            "data.defaults=3",
            "data.defaults is not a key of this config (data=tweets): did you mean data.path?",
        ),
        ("+seed=3", "+seed=3: seed is in the config already, so leave out the +."),
        (
            "trainer.deterministic=true",
            "trainer.deterministic is not in the config, though lightning.Trainer has it: "
            "write +trainer.deterministic=true.",
        ),
        ("seed", "'seed' is no setting: write key=value, such as optim.lr=0.01."),
        ("sweep=virtual_tokens", "sweep=virtual_tokens needs many runs: add -m."),
        ("hydra/lancher=basic", "hydra/lancher is not a group of this config: did you mean hydra/launcher?"),
        (
            "optim.lr=0.1,0.2",
            "optim.lr=0.1,0.2 gives several values: add -m for a run with each, or write one list as [a,b].",
        ),
    ],
)
def test_a_wrong_override_is_one_sentence(override: str, sentence: str) -> None:
    assert refusals(override) == [sentence]


def test_a_key_that_another_choice_has() -> None:
    assert refusals("experiment=chat_ptuning", "data.few_shot=4") == [
        "data.few_shot is not a key of this config (data=chat): "
        "data=classification and data=tweets would have it."
    ]


def test_a_choice_that_no_group_has() -> None:
    (said,) = refusals("experiment=promt_tuning")
    assert said.startswith(
        "experiment=promt_tuning is no file of its group: did you mean prompt_tuning? Known are "
    )


def test_wrong_overrides_and_wrong_values_at_once() -> None:
    said = refusals("prompt=ptuning_lst", "lr=1", "data.template={", "trainer.max_steps=many", "seed=-1")
    assert len(said) == 5


def test_every_value_of_a_sweep_is_judged() -> None:
    said = refusals("-m", "prompt.num_virtual_tokens=5,abc,0", "experiment=prompt_tuning,promt")
    assert said[0].startswith("experiment=promt is no file of its group")
    assert said[1:] == [
        "prompt.num_virtual_tokens=abc must be a whole number.",
        "prompt.num_virtual_tokens=0 leaves nothing to train: give 1 or more.",
    ]


def test_a_key_must_exist_with_every_choice_of_a_sweep() -> None:
    (said,) = refusals("-m", "prompt=ptuning_mlp,prompt_tuning", "prompt.num_layers=3")
    assert said == (
        "prompt.num_layers is not a key of this config (prompt=prompt_tuning): "
        "prompt=ptuning_lstm and prompt=ptuning_mlp would have it."
    )


def test_a_folder_of_ones_own_config(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /prompt: prompt_tuning\npromt:\n  dropout: 0.1\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    assert refusals("--config-dir", str(tmp_path), "experiment=mine") == [
        "promt is not a key of this config: did you mean prompt?"
    ]
    assert refusals("--config-dir", "no/such") == ["--config-dir no/such is not a folder."]


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        (r"data.template=T: {text}\nMood:", "data.template='T: {text}\nMood:'"),
        ("data.template=[INST] {text}, right?", "data.template='[INST] {text}, right?'"),
        ("data.template=Mood (1-5) of {text} (or 0)", "data.template='Mood (1-5) of {text} (or 0)'"),
        (r"""data.template="{text}\n" """[:-1], """data.template="{text}\n" """[:-1]),
        (
            r"data.template=choice('{text}\nMood:','{text}')",
            r"data.template=choice('{text}\nMood:','{text}')",
        ),
        ("data.template=null", "data.template=null"),
    ],
)
def test_a_template_needs_no_quotes(word: str, quoted: str) -> None:
    assert paths_quoted([word]) == [quoted]


@pytest.mark.parametrize(
    "word",
    [
        "data.path=reviews (1).csv",
        "data.val_path=it's, a=b.csv",
        "model.name_or_path=~/my LM",
        "system=Don't be long, please.",
        "data.instruction=Say yes, or no",
        "prompt.init.text=5",
    ],
)
def test_a_path_or_a_text_needs_no_quotes(word: str) -> None:
    key, _, value = word.partition("=")
    (override,) = OverridesParser.create().parse_overrides(paths_quoted([word]))
    assert (override.key_or_group, override.value()) == (key, value)
    assert not override.is_sweep_override()


def test_the_largest_seed_is_one() -> None:
    assert complaints(f"seed={max_seed_value}") == []
    assert max_seed_value == LARGEST_SEED


def test_a_subset_that_is_said_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").touch()
    for path in (str(tmp_path / "mine.csv"), str(tmp_path)):
        said = f"data.subset=apple: {path} is no data set of the hub, and has no subsets: leave it out."
        assert refusals(f"data.path={path}", "data.subset=apple") == [said]
        assert refusals("data=classification", f"data.path={path}", "data.subset=apple") == [said]
        assert refusals("-m", f"data.path={path}", "data.subset=null,apple") == [said]
        assert refusals(f"data.path={path}") == refusals(f"data.path={path}", "data.subset=null") == []
        assert refusals("experiment=raft_twitter_complaints", f"data.path={path}") == []
    assert refusals("data.subset=apple") == refusals("data.path=ought/raft", "data.subset=tweets") == []


def test_epochs_take_the_place_of_steps() -> None:
    """Unless they are said too, or the run goes on until something else ends it."""
    each = ["++trainer.check_val_every_n_epoch=1", "++trainer.val_check_interval=1.0"]
    unsaid = ["++trainer.max_steps=-1"]
    for words, added in (
        (["trainer.max_epochs=3"], unsaid + each),
        (["-m", "++trainer.max_epochs=1,2", "seed=1"], unsaid + each),
        (["trainer.max_epochs=3", "trainer.val_check_interval=20"], unsaid),
        (["trainer.max_epochs=3", "trainer.max_steps=20"], []),
        (["trainer.max_epochs=-1"], []),
        (["trainer.max_steps=20"], []),
    ):
        assert ended_by_epochs(words) == [*words, *added]
        assert refusals(*ended_by_epochs(words)) == []


def test_a_text_can_be_swept() -> None:
    words = ["data.path=a.csv,b.csv", "prompt.init.text=choice('a','b')"]
    assert paths_quoted(["-m", *words]) == ["-m", *words]
    assert paths_quoted(["-m", "data.path=a (1).csv"]) == ["-m", "data.path='a (1).csv'"]


def test_a_dictionary_with_quoted_names_is_shown_another_way() -> None:
    (said,) = refusals('data.label_words={"bad": " bad"}')
    assert said.endswith(
        'quote it as \'data.label_words={bad: " bad", good: " good"}\', names without quotes of their own.'
    )
