"""A baked checkpoint in the words of transformers 4 too: servers and converters are still built on it, and
what they do not find they replace by a default, without a word. transformers 5 reads both.
"""

import json
from pathlib import Path

from ptlit.whole_file import write_json

GENERAL_CLASS = "PreTrainedTokenizerFast"


def write_in_older_words(folder: Path) -> None:
    say_rotary_base(folder / "config.json")
    name_tokenizer_class(folder / "tokenizer_config.json")


def say_rotary_base(path: Path) -> None:
    """Unsaid, it would be taken as 10,000."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = dict(config.get("rope_parameters") or {})
    local = rope.get("sliding_attention") or {}
    if "rope_theta" in local:
        config["rope_local_base_freq"] = local["rope_theta"]
    rope = dict(rope.get("full_attention") or rope)
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = rope
    write_json(path, config)


def name_tokenizer_class(path: Path) -> None:
    """The general class has got a new name, which nobody else knows."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = GENERAL_CLASS
        write_json(path, config)
