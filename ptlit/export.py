"""A trained prompt in a form that others use: python -m ptlit.export run=<run folder> output=<new folder>"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from ptlit import vllm_client
from ptlit.bake import Baked, Ingredient, bake, virtual_embeddings
from ptlit.build import call
from ptlit.cards import (
    Source,
    adapter_card,
    checkpoint_card,
    held,
    llama_cpp_card,
    prefix_card,
    vllm_card,
)
from ptlit.command import command
from ptlit.data.example import leading_tokens
from ptlit.ensemble import size_of
from ptlit.lm import FrozenLM, load_lm
from ptlit.lora import write_lora
from ptlit.mistake import UserMistake
from ptlit.peft_format import CONFIG, prompt_in, read_config, write_adapter
from ptlit.prefix_file import write_prefix
from ptlit.prompt import SoftPrompt
from ptlit.prompted_lm import PromptedLM
from ptlit.quiet import quiet
from ptlit.run import open_run
from ptlit.run import read_config as read_run_config
from ptlit.run_folder import RunFolder

Format = Literal["checkpoint", "llama_cpp", "kv", "peft", "vllm"]
Sources = Mapping[str, Source]


def export(
    run: str | list[str] | dict[str, str],
    output: str,
    format: Format = "checkpoint",
    checkpoint: Literal["best", "last"] = "best",
    lm: str | None = None,
    trust_code: bool = False,
    own_head: bool = False,
) -> Path:
    """The folder, whole or not at all. `run` may be an adapter folder too, ours or PEFT's.

    `own_head`: format=checkpoint with a head apart from the embeddings (llama_cpp always has one).
    """
    quiet()
    paths = named_paths(run)
    if format not in ("checkpoint", "llama_cpp") and len(paths) > 1:
        raise UserMistake(f"format={format} takes one run; several go into one format=checkpoint.")
    writers: dict[Format, Callable[[Sources, Path], str]] = {
        "checkpoint": partial(write_checkpoint, own_head=own_head),
        "llama_cpp": write_for_llama_cpp,
        "kv": write_kv,
        "peft": write_peft,
        "vllm": write_vllm,
    }
    if own_head and format != "checkpoint":
        raise UserMistake(f"own_head=true is for format=checkpoint, not for format={format}.")
    with new_folder(Path(output).expanduser()) as part:
        sources = {name: opened(path, checkpoint, lm, trust_code) for name, path in paths.items()}
        check_lora(format, paths, sources)
        check_one_lm(paths, sources)
        said = writers[format](sources, part)
    print(f"{said}\n{format} {output}, see {Path(output, 'README.md')}", flush=True)
    return Path(output)


def named_paths(run: str | list[str] | dict[str, str]) -> dict[str, Path]:
    """A single prompt needs no name; several are called by their folders, unless names are given."""
    if isinstance(run, dict):
        named = {str(name): Path(path).expanduser() for name, path in run.items()}
        if wrong := [name for name in named if not re.fullmatch(r"[A-Za-z0-9_.-]+", name)]:
            raise UserMistake(
                f"run: {wrong[0]!r} is no name for a prompt: use letters, digits, _, - and dots."
            )
        return named
    paths = [Path(path).expanduser() for path in ([run] if isinstance(run, str) else run)]
    if not paths:
        raise UserMistake("run=[] names no run folder.")
    if len(paths) == 1:
        return {"": paths[0]}
    names = [re.sub(r"[^A-Za-z0-9_.-]", "-", path.absolute().name) for path in paths]
    if len(set(names)) < len(names):
        raise UserMistake(
            f"run: two folders are called {max(names, key=names.count)}: give run={{name: folder, ...}}."
        )
    return dict(zip(names, paths, strict=True))


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `output` when all is done: nothing half-written is left."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserMistake(f"output={output} is there already: name a new folder, or an empty one.")
    part = output.absolute().with_name(f".{output.absolute().name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise UserMistake(f"output={output} cannot be made: {error.strerror}.") from error
    try:
        yield part
        if output.exists():
            output.rmdir()
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def opened(path: Path, checkpoint: Literal["best", "last"], lm: str | None, trust_code: bool) -> Source:
    folder, place = run_of(path)
    if not folder.config.is_file() and (path / CONFIG).is_file():
        return opened_adapter(path, lm)
    run = open_run(folder.root, checkpoint, lm, trust_code, averages=place is not None)
    prompted_lm = run.prompted_lm.with_prompt(run.others[place - 1]) if place else run.prompted_lm
    if run.prompted_lm.in_rows:
        raise UserMistake(
            f"run={path} was trained with virtual tokens inside its template, and whoever reads an export "
            "puts them before the text: train it without {soft:...}."
        )
    known = run.folder.metrics.is_file() and not run.others  # of an ensemble they are those of all together
    metrics = json.loads(run.folder.metrics.read_text()) if known else {}
    return Source(run.lm, prompted_lm, run.template, run.label_words, metrics, run.cfg)


def run_of(path: Path) -> tuple[RunFolder, int | None]:
    """An adapter that lies in its run is that run's prompt, the first or another one of an ensemble: the run
    knows of a LoRA, and how texts are read.
    """
    whole = path.resolve()
    run = RunFolder(whole.parent)
    inside = run.config.is_file() and run.best.is_file() and not RunFolder(whole).config.is_file()
    adapters = run.adapters(size_of(read_run_config(run))) if inside else []
    place = next((place for place, each in enumerate(adapters) if each.name == whole.name), None)
    return (run, place) if place is not None else (RunFolder(path), None)


def opened_adapter(folder: Path, lm: str | None) -> Source:
    """A prompt without its run, perhaps one that PEFT trained."""
    base_model = lm or read_config(folder)["base_model"]
    if not base_model:
        raise UserMistake(f"{folder / CONFIG} names no base model: give lm=...")
    frozen = load_lm(base_model)
    prompt, leading = prompt_in(folder, frozen.shape), read_config(folder)["leading"]
    return Source(frozen, PromptedLM(frozen, prompt, leading=leading).to(frozen.device).eval())


def check_one_lm(paths: Mapping[str, Path], sources: Sources) -> None:
    (first, source), *others = sources.items()
    for name, other in others:
        if other.lm is not source.lm:
            raise UserMistake(
                f"{paths[name]} was trained on {other.lm.name} ({other.lm.dtype}) and {paths[first]} on "
                f"{source.lm.name} ({source.lm.dtype}): one checkpoint holds one LM."
            )


def check_lora(format: Format, paths: Mapping[str, Path], sources: Sources) -> None:
    worn = [paths[name] for name, source in sources.items() if source.lm.has_lora]
    if worn and format in ("kv", "vllm"):
        raise UserMistake(
            f"{worn[0]} has a LoRA on its LM, which format={format} does not take along: use format=peft, or "
            "format=checkpoint, where it goes into the weights."
        )
    if worn and len(paths) > 1:
        raise UserMistake(
            f"{worn[0]} has a LoRA on its LM, so that LM serves no other prompt: export it alone."
        )


def prompt_of(source: Source) -> SoftPrompt:
    assert source.prompted_lm.prompt is not None
    return source.prompted_lm.prompt


def write_checkpoint(sources: Sources, folder: Path, own_head: bool) -> str:
    baked = bake(lm_of(sources), ingredients_of(sources), folder, own_head=own_head)
    write_card(folder, checkpoint_card(sources, baked.prompts, own_head))
    return how_near(baked)


def write_for_llama_cpp(sources: Sources, folder: Path) -> str:
    baked = bake(lm_of(sources), ingredients_of(sources), folder, for_llama_cpp=True, own_head=True)
    write_card(folder, llama_cpp_card(sources, baked.prompts))
    return how_near(baked)


def lm_of(sources: Sources) -> FrozenLM:
    return next(iter(sources.values())).lm


def ingredients_of(sources: Sources) -> dict[str, Ingredient]:
    return {
        name: Ingredient(prompt_of(each), each.template, after_bos=bool(each.prompted_lm.front.leading))
        for name, each in sources.items()
    }


def how_near(baked: Baked) -> str:
    if baked.difference == 0:
        return "Baked: logits equal to the last bit."
    return f"Baked: logits differ by {baked.difference:.1e} of the largest, what this LM's numbers can hold."


def write_kv(sources: Sources, folder: Path) -> str:
    (source,) = sources.values()
    with torch.no_grad():
        prefix = source.prompted_lm.prefix()
    if prefix is None:
        raise UserMistake("This LM does not keep keys and values in every layer: use format=checkpoint.")
    write_prefix(folder, prefix, source.lm)
    write_card(folder, prefix_card(source))
    return f"Keys and values of {held(source.prompted_lm.front)} in {len(prefix.keys)} layers."


def write_peft(sources: Sources, folder: Path) -> str:
    (source,) = sources.values()
    prompt, lm = prompt_of(source), source.lm
    front = source.prompted_lm.front
    write_adapter(folder, prompt, lm.shape, lm.name, lm.revision, front)
    if lm.has_lora:
        write_lora(folder / "lora", lm)
    if source.cfg is not None:
        read = (source.template, source.label_words)
        beside = "lora" if lm.has_lora else None
        write_card(folder, adapter_card(prompt, front, *read, source.cfg, source.metrics, beside))
    return f"{prompt.peft_type} for {lm.name}{', and its LoRA' if lm.has_lora else ''}."


def write_vllm(sources: Sources, folder: Path) -> str:
    (source,) = sources.values()
    front = source.prompted_lm.front
    learned = virtual_embeddings("", prompt_of(source), source.lm)
    embeddings = front.embeddings(learned).detach().cpu().contiguous()
    template = source.template
    if template is not None and set(template.fields) != {"text"}:
        raise UserMistake(
            f"The template {template.template!r} needs more than a text: use format=checkpoint."
        )
    pieces = template.pieces if template is not None else []
    place = next((index for index, (_, field, _) in enumerate(pieces) if field == "text"), -1)
    said = {
        "base_model": source.lm.name,
        "leading": [] if front.leading else leading_tokens(source.lm.tokenizer),
        "before": "".join(literal for literal, _, _ in pieces[: place + 1]),
        "after": "".join(literal for literal, _, _ in pieces[place + 1 :]),
    }
    save_file({"prompt_embeddings": embeddings}, folder / "prompt.safetensors", metadata={"format": "pt"})
    (folder / "client.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    shutil.copy(vllm_client.__file__, folder / "client.py")
    write_card(folder, vllm_card(source))
    return f"Embeddings of {held(front)}, and a client."


def write_card(folder: Path, card: str) -> None:
    (folder / "README.md").write_text(card, encoding="utf-8")


main = command("export", call)

if __name__ == "__main__":
    main()
