"""PEFT's adapter folder, written from a trained prompt and read back.

PEFT needs one tensor, `prompt_embeddings`, and ignores the rest of the file: the prompt's own tensors
(encoder included) travel beside it under `ptlit.`, so that the same file can be trained further.

PEFT puts virtual tokens before all else. Where ours stand behind BOS, its embedding comes along as the first
of theirs, and texts go in without it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ptlit.front import Front
from ptlit.lm import LMShape
from ptlit.mistake import UserMistake
from ptlit.prompt import EmbeddingPrompt, KeyValuePrompt, PrefixTuning, PromptTuning, SoftPrompt
from ptlit.prompt.base import peft_rows
from ptlit.whole_file import replaced, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDINGS = "prompt_embeddings"  # the one tensor that PEFT reads
OURS = "ptlit."  # how the names of the others begin
METHOD = "ptlit_method"  # in the file's metadata: the class that the others belong to
LEADING = "ptlit_leading"  # there too: the tokens whose embeddings come before those that were learned
INPUT_TYPES, DEEP_TYPES = ("PROMPT_TUNING", "P_TUNING"), ("PREFIX_TUNING",)


def prompt_embeddings(prompt: SoftPrompt) -> Tensor:
    """What PEFT calls `prompt_embeddings`: (P, H), or (P, L * 2 * K * D) for the deep kind; without
    dropout.
    """
    training = prompt.training
    prompt.eval()
    with torch.no_grad():
        learned = prompt()
    prompt.train(training)
    rows = learned if isinstance(prompt, EmbeddingPrompt) else peft_rows(learned)
    return rows.detach().float().cpu().contiguous()


def adapter_config(
    prompt: SoftPrompt, count: int, shape: LMShape, base_model: str, revision: str | None = None
) -> dict[str, object]:
    deep = not isinstance(prompt, EmbeddingPrompt)
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": shape.num_kv_heads,
        "num_layers": shape.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": count,
        "peft_type": prompt.peft_type,
        "revision": revision,
        "task_type": "CAUSAL_LM",
        "token_dim": (shape.num_kv_heads or 0) * (shape.head_dim or 0) if deep else shape.hidden_size,
        **prompt.peft_options(),
    }


def write_adapter(
    folder: Path,
    prompt: SoftPrompt,
    shape: LMShape,
    base_model: str,
    revision: str | None = None,
    front: Front | None = None,
) -> None:
    """Each file is written under another name first: a crash leaves the old adapter whole. `front` is what
    the virtual tokens stand in, where that is more than themselves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given, leading = prompt_embeddings(prompt), front.leading if front is not None else ()
    if front is not None and leading:
        given = torch.cat([front.words().detach().float().cpu(), given])
    ours = {OURS + name: tensor.detach().cpu().contiguous() for name, tensor in prompt.state_dict().items()}
    tensors = {EMBEDDINGS: given, **ours}
    metadata = {"format": "pt", METHOD: type(prompt).__name__}
    metadata |= {LEADING: json.dumps(leading)} if leading else {}
    with replaced(folder / WEIGHTS) as part:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, part, metadata=metadata)
    write_json(folder / CONFIG, adapter_config(prompt, len(given), shape, base_model, revision))


@dataclass(frozen=True)
class Adapter:
    """A folder that PEFT or ptlit wrote. `ours` are the prompt's own tensors, of which PEFT saves none."""

    folder: Path
    peft_type: str
    base_model: str
    leading: tuple[int, ...]  # tokens that the virtual ones stand behind; nothing in PEFT's own
    embeddings: Tensor  # (P, H), or (P, L * 2 * K * D), without those tokens
    ours: dict[str, Tensor]
    method: str | None  # the class that `ours` belong to


def open_adapter(folder: Path) -> Adapter:
    config = read_config(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            method = (file.metadata() or {}).get(METHOD)
    except (SafetensorError, OSError) as error:
        raise UserMistake(f"{folder / WEIGHTS} is broken: {' '.join(str(error).split())}.") from error
    ours = {name.removeprefix(OURS): each for name, each in tensors.items() if name.startswith(OURS)}
    if EMBEDDINGS not in tensors:
        raise UserMistake(f"{folder / WEIGHTS} has no tensor {EMBEDDINGS}: it holds {', '.join(tensors)}.")
    if not tensors[EMBEDDINGS].isfinite().all():
        raise UserMistake(f"{folder / WEIGHTS} holds numbers that are not finite.")
    leading = config["leading"]
    embeddings = tensors[EMBEDDINGS][len(leading) :].float()
    return Adapter(folder, config["peft_type"], str(config["base_model"]), leading, embeddings, ours, method)


def adapter_folder(folder: Path) -> Path:
    """That of a run, or the folder itself."""
    inside = folder / "adapter"
    return inside if (inside / CONFIG).is_file() and not (folder / CONFIG).is_file() else folder


def adapter_folders(folder: Path) -> list[Path]:
    """Those of a run, which may be an ensemble, or the folder itself."""
    first = adapter_folder(folder)
    others = (first.with_name(f"{first.name}_{number}") for number in count(2))
    return (
        [first, *takewhile(lambda other: (other / CONFIG).is_file(), others)] if first != folder else [first]
    )


def read_config(folder: Path) -> dict[str, Any]:
    """What the folder says it holds, told without reading a tensor."""
    if not (folder / CONFIG).is_file():
        if (folder / "checkpoints").is_dir():
            raise UserMistake(
                f"{folder} is a run without an adapter/, as one that has not ended: resume={folder}."
            )
        raise UserMistake(f"{folder} is no adapter, for it has no {CONFIG}.")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = " (a pickle, adapter_model.bin, is not read: save it again with PEFT)" if pickled else ""
        raise UserMistake(f"{folder} has no {WEIGHTS}{reason}.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, count = str(config["peft_type"]), config.get("num_virtual_tokens")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserMistake(f"{folder / CONFIG} is broken, or no adapter's config.") from error
    if kind not in (*INPUT_TYPES, *DEEP_TYPES):
        raise UserMistake(
            f"{folder} holds {kind}, which is no soft prompt that ptlit knows: known are "
            f"{', '.join((*INPUT_TYPES, *DEEP_TYPES))}."
        )
    leading = leading_of(folder / WEIGHTS)
    return {
        "peft_type": kind,
        "num_virtual_tokens": count - len(leading) if isinstance(count, int) else count,
        "leading": leading,
        "base_model": config.get("base_model_name_or_path"),
    }


def leading_of(weights: Path) -> tuple[int, ...]:
    """The tokens that virtual ones stand behind in this file."""
    try:
        with safe_open(weights, framework="np") as file:
            said = json.loads((file.metadata() or {}).get(LEADING, "[]"))
        return tuple(map(int, said))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserMistake(f"{weights} is broken: {' '.join(str(error).split())}.") from error


def check_kind(folder: Path, config: Mapping[str, Any], method: type[SoftPrompt], count: int | None) -> None:
    """What can be told of `prompt.init.from=<folder>` before any LM is loaded."""
    kind = config["peft_type"]
    if issubclass(method, EmbeddingPrompt) and kind in DEEP_TYPES:
        raise UserMistake(
            f"{folder} holds keys and values ({kind}) and {method.__name__} learns embeddings: choose a deep "
            "prompt, such as prompt=prefix_tuning."
        )
    if issubclass(method, KeyValuePrompt) and kind in INPUT_TYPES:
        raise UserMistake(
            f"{folder} holds embeddings ({kind}) and {method.__name__} learns keys and values: choose an "
            "input prompt, such as prompt=prompt_tuning."
        )
    held = config["num_virtual_tokens"]
    if isinstance(held, int) and isinstance(count, int) and held != count:
        raise UserMistake(f"{folder} holds {held} virtual tokens: give prompt.num_virtual_tokens={held}.")


def read_adapter(folder: Path, prompt: SoftPrompt) -> str:
    """Bring `prompt` to where the adapter is, all of it or nothing; a sentence that says how.

    Ours of the same method is restored tensor by tensor. Of others there is only what the LM was given:
    `prompt` then starts from that, with an encoder, if it has one, that is new.
    """
    check_kind(folder, read_config(folder), type(prompt), prompt.num_virtual_tokens)
    adapter = open_adapter(folder)
    trained = f"{folder} ({adapter.peft_type}, trained on {adapter.base_model})"
    if adapter.method == type(prompt).__name__:
        ours = prompt.completed(adapter.ours)
        check_tensors(f"{folder / WEIGHTS}", prompt, ours)
        own = {name: each for name, each in prompt.state_dict().items() if name == "scale.value"}
        prompt.load_state_dict(ours | own)  # on this LM it moves on in this LM's scale
        if not torch.allclose(prompt_embeddings(prompt), adapter.embeddings, rtol=1e-3, atol=1e-5):
            start_at_output(prompt, adapter)  # it has an option that it had not there: a residual, a scale
        return f"The prompt goes on from {trained}, with all that was learned."
    wanted = prompt_embeddings(prompt).shape
    if adapter.embeddings.shape != wanted:
        raise UserMistake(
            f"{folder} was trained on an LM of another shape ({adapter.base_model}): its {EMBEDDINGS} is "
            f"{tuple(adapter.embeddings.shape)}, and here it takes {tuple(wanted)}."
        )
    start_at_output(prompt, adapter)
    left = " The encoder behind it was not saved." if adapter.peft_type == "P_TUNING" else ""
    left = f" Its own tensors ({adapter.method}) are left behind." if adapter.method else left
    return f"The prompt starts from the output of {trained}.{left}"


@torch.no_grad()
def start_at_output(prompt: SoftPrompt, adapter: Adapter) -> None:
    start = adapter.embeddings.to(next(prompt.parameters()).device)
    prompt.start_at(prompt.key_values(start) if isinstance(prompt, KeyValuePrompt) else start)


def prompt_in(folder: Path, shape: LMShape) -> SoftPrompt:
    """What the folder gives an LM, whoever trained it by whatever method."""
    config = read_config(folder)
    kind = PrefixTuning if config["peft_type"] in DEEP_TYPES else PromptTuning
    prompt = kind(shape, num_virtual_tokens=len(open_adapter(folder).embeddings))
    read_adapter(folder, prompt)
    return prompt


def check_tensors(title: str, module: nn.Module, found: Mapping[str, Tensor]) -> None:
    """All of a module's tensors, or a mistake that names those that differ."""
    expected = module.state_dict()
    differences = [
        *(f"{name} is missing" for name in expected if name not in found),
        *(f"{name} is unknown" for name in found if name not in expected),
        *(
            f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ),
    ]
    if differences:
        raise UserMistake(f"{title} does not fit {type(module).__name__}: {', '.join(differences)}.")
