"""What a run says before it starts and when it has ended."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ptlit.build import Training
from ptlit.data import ClassificationData
from ptlit.module import SoftPromptModule
from ptlit.run_folder import RunFolder


def parameter_counts(module: SoftPromptModule) -> dict[str, float]:
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {
        "parameters/trainable": trainable,
        "parameters/total": trainable + sum(p.numel() for p in module.prompted_lm.lm.parameters()),
    }


def print_start(training: Training, folder: RunFolder, choices: Mapping[str, str]) -> None:
    counts = parameter_counts(training.module)
    trainable, total = counts["parameters/trainable"], counts["parameters/total"]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{choices['experiment']} on {training.lm.name}")
    console.print(f"trainable {trainable:,} / all {total:,} / {100 * trainable / total:.4f} %")
    if trainable > total / 2:
        console.print("The prompt is larger than the LM; a smaller prompt.hidden_size may do.")
    console.print(data_line(training.data))
    console.print(f"run folder {from_here(folder.root)}\n")


def data_line(data: ClassificationData) -> str:
    summary = data.summary()
    rows = ", ".join(f"{split} {part['rows']:,}" for split, part in summary["splits"].items())
    line = f"{rows} rows; labels {', '.join(data.label_words.names)}"
    for word in ("skipped", "truncated"):
        count = sum(part[word] for part in summary["splits"].values())
        line += f"; {count:,} {word}" if count else ""
    return "\n".join([line, *summary["notes"]])


def print_summary(training: Training, folder: RunFolder, metrics: Mapping[str, float]) -> None:
    table = Table("on the test split", "accuracy", "macro F1", "loss")
    names = {
        "test": "trained prompt (best checkpoint)",
        "baseline/hard_prompt": "untrained LM, same template",
        "baseline/majority": "always the most frequent class",
        "baseline/topic_majority": "the topic's most frequent class",
    }
    for place, name in names.items():
        if f"{place}/accuracy" in metrics:
            cells = [metrics.get(f"{place}/{key}") for key in ("accuracy", "macro_f1", "loss")]
            table.add_row(name, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    if "speed/examples_per_second" in metrics:
        console.print(
            f"{metrics['speed/examples_per_second']:.1f} examples/s, "
            f"{metrics['seconds/fit']:.0f} s of training, peak memory {metrics['memory/peak_mb']:,.0f} MB"
        )
    console.print(f"run folder   {from_here(folder.root)}")
    console.print(f"PEFT adapter {from_here(folder.adapter)}")
    console.print(f"curves       {from_here(folder.curves)}")
    console.print(f"tensorboard --logdir {shlex.quote(str(from_here(folder.tensorboard)))}")


def from_here(path: Path) -> Path:
    """As one would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
