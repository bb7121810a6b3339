"""check(): every mistake of a composed config, named at once and before anything is loaded.

There is no schema to maintain: the signature of what a node names says which options it has and their types.
"""

import difflib
import functools
import math
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from ptlit.mistake import UserMistake
from ptlit.signature import LATER, MISSING, guess, option_mistakes, shown
from ptlit.tried_options import HYDRA_KEYS, WORDS, objections

# each of these names one thing
PARTS = ("model", "lora", "data", "prompt", "optim", "schedule", "loss", "distill", "trainer", "benchmark")
BOXES = ("callbacks", "logger")  # each of these holds any number of named things
SPREAD = ("experiment", "hydra", "sweep")  # groups that write into the others and have no key of their own

WHOLE_NUMBERS = {"seed": 0, "ensemble": 1}  # that stand at the root, and how small they may be
LARGEST_SEED = 2**32 - 1  # that numpy takes
NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {  # the others there
    "kl_weight": (lambda value: 0 <= value < math.inf, "a number, 0 or more"),
    "drop_virtual_tokens": (lambda value: 0 <= value < 1, "a number from 0 up to, not including, 1"),
}

AT_THE_ROOT = (*WHOLE_NUMBERS, *NUMBERS)

RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "optim.lr": (lambda value: 0 < value < math.inf, "must be above 0"),
    "schedule.num_warmup_steps": (lambda value: value >= 0, "must be 0 or more"),
    "trainer.max_steps": (lambda value: value >= 1 or value == -1, "must be 1 or more, or -1 for no limit"),
    "trainer.accumulate_grad_batches": (lambda value: value >= 1, "must be 1 or more"),
    "trainer.val_check_interval": (lambda value: value > 0, "must be above 0"),
    "trainer.gradient_clip_val": (lambda value: value >= 0, "must be 0 or more"),
}


def conf_folder() -> Path:
    """The config files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def check(cfg: DictConfig, config_name: str = "train") -> None:
    if mistakes := config_mistakes(cfg, config_name) + device_mistakes(cfg):
        raise UserMistake("\n".join(mistakes))


def config_mistakes(cfg: DictConfig, config_name: str = "train") -> list[str]:
    """All that can be told without knowing the machine that the run will be on."""
    mistakes: list[str] = []
    nodes = {str(key): node for key, node in raw(cfg).items() if key != "hydra"}
    tree = {key: plain(cfg, key, node, mistakes) for key, node in nodes.items()}
    if tree.get("resume") is not None and isinstance(tree.get("prompt"), dict):
        tree["prompt"].pop("init", None)  # where a resumed run began is past, and may be gone
    known, chosen = root_keys(config_name)
    mistakes += [
        f"{key} is not a key of this config: {guess(key, known)}" for key in tree if key not in known
    ]
    if "_target_" in tree:  # a command whose config names its function
        mistakes += node_mistakes("", tree)
    else:
        mistakes += [f"{key} has no value: give {key}=..." for key, value in tree.items() if value == MISSING]
    for part in PARTS:
        if part in tree or part in chosen:
            found = node_mistakes(part, tree.get(part)) + rule_mistakes(part, tree.get(part))
            mistakes += found + objections(part, tree.get(part), found)
    mistakes += slot_mistakes(tree.get("data"), tree.get("prompt"))
    mistakes += label_mistakes(tree.get("data"), tree.get("prompt"), tree.get("loss"), tree.get("ensemble"))
    mistakes += lora_mistakes(tree.get("lora"), tree.get("ensemble"))
    for box in BOXES:
        for name, node in (tree.get(box) or {}).items():
            mistakes += node_mistakes(f"{box}.{name}", node) if node is not None else []
    for key, least in WHOLE_NUMBERS.items():
        value = tree.get(key, least)
        if value != MISSING and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            mistakes.append(f"{key}={shown(value)} must be a whole number, {least} or more.")
    if isinstance(seed := tree.get("seed"), int) and seed > LARGEST_SEED:
        mistakes.append(f"seed={seed} must be {LARGEST_SEED} or less.")
    for key, (right, kind) in NUMBERS.items():
        value = tree.get(key, 0.0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != MISSING and not (number and right(value)):
            mistakes.append(f"{key}={shown(value)} must be {kind}.")
    if (test := tree.get("test", True)) != MISSING and not isinstance(test, bool):
        mistakes.append(f"test={shown(test)} must be true or false.")
    return list(dict.fromkeys(mistakes))


def device_mistakes(cfg: DictConfig) -> list[str]:
    """What the trainer asks for and this machine lacks."""
    wanted, count = OmegaConf.select(cfg, "trainer.accelerator"), OmegaConf.select(cfg, "trainer.devices")
    if wanted not in ("gpu", "cuda"):
        return []
    import torch

    found = torch.cuda.device_count() or int(wanted == "gpu" and torch.backends.mps.is_available())
    if not found:
        return [f"trainer.accelerator={wanted} asks for a GPU and none is found: use trainer=cpu."]
    if isinstance(count, int) and count > found:
        return [f"trainer.devices={count} is more than the GPUs found: use trainer.devices={found}."]
    return []


@functools.cache
def root_keys(config_name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys a config can have, and which of them are groups that it does choose from."""
    primary = OmegaConf.load(conf_folder() / f"{config_name}.yaml")
    assert isinstance(primary, DictConfig)
    groups = [folder.name for folder in sorted(conf_folder().iterdir()) if folder.is_dir()]
    known, chosen = [*groups, *(str(key) for key in primary if key != "defaults")], []
    for entry in primary.get("defaults", []):
        if OmegaConf.is_dict(entry):
            chosen += [str(key) for key in entry]
        elif entry != "_self_":  # a config that this one begins with
            more = root_keys(str(entry))
            known += more[0]
            chosen += more[1]
    return tuple(key for key in dict.fromkeys(known) if key not in SPREAD), tuple(chosen)


def raw(cfg: DictConfig) -> dict[Any, Any]:
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    return tree


def plain(cfg: DictConfig, path: str, value: Any, mistakes: list[str]) -> Any:
    """The value with its interpolations filled in; LATER where only a run can do that."""
    if isinstance(value, dict):
        return {str(key): plain(cfg, f"{path}.{key}", each, mistakes) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(cfg, f"{path}[{index}]", each, mistakes) for index, each in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        found = OmegaConf.select(cfg, path)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except InterpolationKeyError:
        mistakes.append(f"{path}={value} refers to a key that this config does not have.")
    except OmegaConfBaseException:
        pass  # ${hydra:...}, which exists once the run has begun
    return LATER


def node_mistakes(path: str, node: Any) -> list[str]:
    """A node's own mistakes, and those of the nodes inside it."""
    if node is LATER or node == MISSING or (node is None and path in ("schedule", "lora", "loss", "distill")):
        return []
    if node is None:
        return [f"{path} is left out: give {path}=... (a file of conf/{path})."]
    if not isinstance(node, dict):
        return [f"{path}={shown(node)} must be a mapping with a _target_."]
    if "_target_" not in node:
        choose = f": give {path}=... (a file of conf/{path})" if (conf_folder() / path).is_dir() else ""
        return [f"{path} has no _target_, so nothing says what it is{choose}."]
    options = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
    target, mistakes = find_target(path, str(node["_target_"]))
    if target is not None:
        apart = ("init",) if path == "prompt" else ()
        mistakes += option_mistakes(path, options, target, apart, WORDS.get(path))
    if path == "prompt":
        mistakes += start_mistakes(options.get("init"), target, options.get("num_virtual_tokens"))
    for key, value in options.items():
        for name, inner in [(key, value)] if isinstance(value, dict) else listed(key, value):
            if isinstance(inner, dict) and "_target_" in inner:
                mistakes += node_mistakes(f"{path}.{name}", inner)
    return mistakes


def listed(key: str, value: Any) -> list[tuple[str, Any]]:
    return [(f"{key}[{index}]", each) for index, each in enumerate(value)] if isinstance(value, list) else []


def start_mistakes(init: Any, method: Any = None, count: Any = None) -> list[str]:
    """`prompt.init` has no _target_: it is said to start_prompt, whose `from_` it calls `from`."""
    from ptlit.prompt.init import STARTS, start_prompt

    if init is None or init is LATER:
        return []
    if not isinstance(init, dict):
        return [f"prompt.init={shown(init)} must be a mapping: give prompt.init.from=..."]
    options = {"from_" if key == "from" else key: value for key, value in init.items()}
    mistakes = [
        mistake.replace("from_", "from").replace("start_prompt", "prompt.init")
        for mistake in option_mistakes("prompt.init", options, start_prompt)
    ]
    start = options.get("from_")
    if isinstance(start, str) and start not in (*STARTS, MISSING):
        mistakes += adapter_mistakes(start, method, count)
    return mistakes


def label_mistakes(data: Any, prompt: Any, loss: Any, ensemble: Any) -> list[str]:
    """Labels are asked for where rows have none."""
    from ptlit.data import ChatData

    if not isinstance(data, dict) or find_target("data", str(data.get("_target_")))[0] is not ChatData:
        return []
    mistakes = []
    init = prompt.get("init") if isinstance(prompt, dict) else None
    if isinstance(init, dict) and init.get("from") == "labels":
        mistakes.append(
            "prompt.init.from=labels: dialogues have no labels: choose another, such as"
            " prompt.init.from=text."
        )
    weight = loss.get("label_weight") if isinstance(loss, dict) else None
    if isinstance(weight, int | float) and weight > 0:
        mistakes.append(f"loss.label_weight={weight} ranks labels, and dialogues have none: leave it out.")
    if is_several(ensemble):
        mistakes.append(
            f"ensemble={ensemble} averages what prompts say of labels, and dialogues have none: leave it out."
        )
    return mistakes


def lora_mistakes(lora: Any, ensemble: Any) -> list[str]:
    """Prompts that learn each for itself, on one LM that learns too."""
    from ptlit.lora import TrainedLora

    trained = isinstance(lora, dict) and find_target("lora", str(lora.get("_target_")))[0] is TrainedLora
    if not trained or not is_several(ensemble):
        return []
    return [
        f"ensemble={ensemble} trains each prompt as if it were alone, and lora=trained changes the LM that "
        "they share: leave out one of them."
    ]


def is_several(ensemble: Any) -> bool:
    return isinstance(ensemble, int) and not isinstance(ensemble, bool) and ensemble > 1


def adapter_mistakes(start: str, method: Any, count: Any) -> list[str]:
    """Of a prompt that is to start from a folder, or from a word that nobody knows."""
    from ptlit.peft_format import adapter_folder, check_kind, read_config
    from ptlit.prompt import SoftPrompt
    from ptlit.prompt.init import STARTS

    folder, said = Path(start), f"prompt.init.from={start}"
    if not folder.is_dir():
        if len(folder.parts) > 1:
            return [f"{said}: there is no such folder."]
        return [f"{said} is not a start: {guess(start, STARTS)}"]
    try:
        folder = adapter_folder(folder)
        config = read_config(folder)
        if isinstance(method, type) and issubclass(method, SoftPrompt):
            check_kind(folder, config, method, count)
    except UserMistake as mistake:
        return [f"prompt.init.from: {mistake}"]
    return []


def find_target(path: str, target: str) -> tuple[Any, list[str]]:
    """What a `_target_` names; failing that what was meant, so that its options can be judged too."""
    said = f"{path}._target_={target}"
    try:
        found = resolve_name(target)
        return (found, []) if callable(found) else (None, [f"{said} is not a class or a function."])
    except Exception as error:  # importing a user's own module can raise anything
        reason = (str(error) or repr(error)).splitlines()[0].rstrip(".")
    module, _, name = target.rpartition(".")
    try:
        home = resolve_name(module)
    except Exception:
        return None, [f"{said} cannot be imported: {reason}."]
    offered = [each for each in dir(home) if not each.startswith("_") and callable(getattr(home, each))]
    near = difflib.get_close_matches(name, offered, n=1)
    if not near:
        return None, [f"{said} does not exist: {reason}."]
    return getattr(home, near[0]), [f"{said} does not exist: did you mean {module}.{near[0]}?"]


def rule_mistakes(part: str, node: Any) -> list[str]:
    """Numbers that are of the right type and still make no run."""
    if not isinstance(node, dict):
        return []
    mistakes = []
    for path, (right, sentence) in RULES.items():
        value = node.get(path.removeprefix(f"{part}."))
        if isinstance(value, int | float) and not isinstance(value, bool) and not right(value):
            mistakes.append(f"{path}={value} {sentence}.")
    if part == "trainer" and node.get("limit_test_batches") is not None:
        mistakes.append(
            "trainer.limit_test_batches: one Trainer trains and another tests: give data.test_limit."
        )
    if part == "trainer" and node.get("overfit_batches"):
        mistakes.append(
            "trainer.overfit_batches: batches are drawn anew in each epoch, and would hold other rows: "
            "give data.limit, as many rows as are to be learned by heart."
        )
    if part == "trainer" and node.get("max_steps") == -1 and node.get("max_epochs") == -1:
        mistakes.append("trainer.max_steps=-1 with trainer.max_epochs=-1 never ends: give one a number.")
    return mistakes


def slot_mistakes(data: Any, prompt: Any) -> list[str]:
    """What the template has places for, held against the prompt that is to stand in them."""
    from ptlit.data import Template
    from ptlit.prompt.base import SoftPrompt, check_slots

    if not isinstance(data, dict) or not isinstance(prompt, dict) or "_target_" not in prompt:
        return []
    method = find_target("prompt", str(prompt["_target_"]))[0]
    template, count = data.get("template"), prompt.get("num_virtual_tokens")
    if not isinstance(template, str) or not isinstance(method, type) or not issubclass(method, SoftPrompt):
        return []
    try:
        slots = Template(template).slots
    except UserMistake:  # told by the data
        return []
    try:
        check_slots(slots, method, count if isinstance(count, int) else slots)
    except UserMistake as mistake:
        return [str(mistake)]
    return []
