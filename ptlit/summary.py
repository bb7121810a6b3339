"""What a run says before it starts and when it has ended."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ptlit.build import Training
from ptlit.callbacks.chat_report import ChatReport
from ptlit.config import conf_folder
from ptlit.data import TextData
from ptlit.data.sources import BUNDLED_TWEETS
from ptlit.module import SoftPromptModule
from ptlit.run_folder import RunFolder


def parameter_counts(module: SoftPromptModule) -> dict[str, float]:
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {
        "parameters/trainable": trainable,
        "parameters/total": sum(p.numel() for p in module.parameters()),
    }


def print_start(
    training: Training, folder: RunFolder, choices: Mapping[str, str], said: Sequence[str] = ()
) -> None:
    """`said` are the words of the command line."""
    counts = parameter_counts(training.module)
    trainable, total = counts["parameters/trainable"], counts["parameters/total"]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{method(choices)} on {training.lm.name}")
    console.print(f"trainable {trainable:,} / all {total:,} / {100 * trainable / total:.4f} %")
    if trainable > total / 2:
        console.print("The prompt is larger than the LM; a smaller prompt.hidden_size may do.")
    own, chosen = choices["experiment"], method(choices)
    brings_a_rate = (conf_folder() / "experiment" / f"{chosen}.yaml").is_file()
    if chosen != own and brings_a_rate and not any(word.startswith("optim.lr=") for word in said):
        console.print(f"The learning rate is that of experiment={own}: experiment={chosen} brings its own.")
    console.print(data_line(training.data))
    for line in settings_of_tweets(training.data):
        console.print(line)
    console.print(f"run folder {from_here(folder.root)}\n")


def method(choices: Mapping[str, str]) -> str:
    """The experiment, unless another method's prompt was chosen in its place."""
    own, chosen = choices["experiment"], choices["prompt"]
    return chosen if (conf_folder() / "prompt" / f"{own}.yaml").is_file() else own


def data_line(data: TextData[Any]) -> str:
    summary = data.summary()
    rows = ", ".join(f"{split} {part['rows']:,}" for split, part in summary["splits"].items())
    line = f"{rows} rows; {data.content}"
    for word in ("skipped", "truncated"):
        count = sum(part[word] for part in summary["splits"].values())
        line += f"; {count:,} {word}" if count else ""
    return "\n".join([line, *summary["notes"]])


def settings_of_tweets(data: TextData[Any]) -> list[str]:
    """Other rows, where those of the bundled tweets are what was chosen, or what nobody chose."""
    tweets = yaml.safe_load((conf_folder() / "data" / "tweets.yaml").read_text(encoding="utf-8"))
    if data.path == BUNDLED_TWEETS or data.instruction != tweets["instruction"]:
        return []
    return [
        f"data.path={data.path} is read with the template, instruction and limits of data=tweets: "
        "data=classification brings those for texts of any kind."
    ]


def print_replies(report: ChatReport, console: Console, most: int = 3) -> None:
    for sample in report.samples[:most]:
        console.print(f"user           {one_line(sample.question)}")
        console.print(f"untrained LM   {one_line(sample.before)}")
        console.print(f"trained prompt {one_line(sample.after)}\n")


def one_line(text: str, longest: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]} ..."


def print_summary(training: Training, folder: RunFolder, metrics: Mapping[str, float]) -> None:
    split, title = ("test", "test") if "test/loss" in metrics else ("val", "validation")
    headline = training.module.metrics_of(split).headline
    table = Table(f"on the {title} split", *(name.replace("_", " ").replace("f1", "F1") for name in headline))
    names = {
        split: "trained prompt (best checkpoint)",
        "baseline/hard_prompt": "untrained LM, same template",
        "baseline/majority": "always the most frequent class",
        "baseline/topic_majority": "the topic's most frequent class",
    }
    for place, name in names.items():
        if f"{place}/{headline[0]}" in metrics:
            cells = [metrics.get(f"{place}/{key}") for key in headline]
            table.add_row(name, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for report in training.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(report, ChatReport):
            print_replies(report, console)
    console.print(table)
    if "forgetting/perplexity_trained" in metrics:
        own, now = (metrics[f"forgetting/perplexity_{which}"] for which in ("untrained", "trained"))
        console.print(f"perplexity of the untrained LM's own replies: {own:.2f}, with the prompt {now:.2f}")
    if "speed/examples_per_second" in metrics:
        console.print(
            f"{metrics['speed/examples_per_second']:.1f} examples/s, "
            f"{metrics['seconds/fit']:.0f} s of training, peak memory {metrics['memory/peak_mb']:,.0f} MB"
        )
    console.print(f"run folder   {from_here(folder.root)}")
    adapters = folder.adapters(len(training.module.prompts))
    console.print(f"PEFT adapter {', '.join(str(from_here(adapter)) for adapter in adapters)}")
    console.print(f"curves       {from_here(folder.curves)}")
    if folder.tensorboard.is_dir():
        console.print(f"tensorboard --logdir {shlex.quote(str(from_here(folder.tensorboard)))}")


def from_here(path: Path) -> Path:
    """As one would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
