"""The words of a command line, as they are typed and as Hydra's grammar has them."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

PATHS = ("run", "resume", "input", "output", "lm")  # keys whose values are paths
TEMPLATE = "data.template"
TEXTS = (  # keys whose values are texts or paths too, and may be swept
    *("text", "system", "data.system", "data.instruction", "prompt.init.text"),
    *("data.path", "data.val_path", "data.test_path", "model.name_or_path"),
)
SWEEPS = ("choice", "glob", "interval", "range", "shuffle", "sort", "tag")  # what Hydra reads as one


def paths_quoted(argv: Sequence[str]) -> list[str]:
    """Paths, texts and templates need none of Hydra's quotes; of a template, \\n is a new line. run=a,b are
    two runs where that is not one that exists, and -m makes several of a text with commas.
    """
    multirun = "-m" in argv or "--multirun" in argv
    return [word if multirun and is_swept(word) else path_quoted(word) for word in argv]


def is_swept(word: str) -> bool:
    key, _, value = word.partition("=")
    return key in TEXTS and "," in value


def path_quoted(word: str) -> str:
    key, _, value = word.partition("=")
    sweep = re.fullmatch(rf"({'|'.join(SWEEPS)})\s*\(.*\)", value, flags=re.DOTALL)
    if key == TEMPLATE and not sweep:
        value = value.replace("\\n", "\n")
        word = f"{key}={value}"
    as_hydra_has_it = {"run": "'\"[{", TEMPLATE: "'\""}.get(key, "'\"[")
    is_left = value in ("", "null") or value[0] in as_hydra_has_it or (key not in PATHS and sweep)
    if key not in (*PATHS, *TEXTS, TEMPLATE) or is_left:
        return word
    several = key == "run" and "," in value and not Path(value).exists()
    words = [quoted(each) for each in (value.split(",") if several else [value])]
    return f"{key}=[{','.join(words)}]" if several else f"{key}={words[0]}"


def quoted(text: str) -> str:
    """So that Hydra reads that very text."""
    return QuotedString(text, Quote.single).with_quotes()


def unquoted(value: str) -> str:
    """The text that Hydra reads there."""
    if value[:1] not in ("'", '"'):
        return value
    try:
        return str(OverridesParser.create().parse_override(f"text={value}").value())
    except HydraException:  # the preflight says what is wrong with it
        return value


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
