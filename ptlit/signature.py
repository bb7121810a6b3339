"""Options held against the signature of what they configure: names, presence and types, in plain words."""

import collections.abc
import contextlib
import difflib
import enum
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union

LATER = object()  # a value that only a run can give, such as the run's folder
MISSING = "???"  # OmegaConf's mark for "the user must say"

# What the program itself hands over, whatever the annotation says.
LIVE = {
    "lm",
    "num_training_steps",
    "optimizer",
    "params",
    "prompt",
    "prompted_lm",
    "seed",
    "shape",
    "task",
    "tokenizer",
}

LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}


def option_mistakes(
    path: str,
    values: Mapping[str, Any],
    target: Callable[..., Any],
    apart: Iterable[str] = (),
    also: Mapping[str, Any] | None = None,
) -> list[str]:
    """What is wrong with `values` as arguments of `target`; names in `apart` are judged elsewhere, and those
    in `also` may be what is said there too.
    """
    try:
        parameters, kinds = inspect.signature(target).parameters, annotations(target)
    except ValueError:  # written in C, without a signature
        return []
    more = {name: each for name, each in (also or {}).items() if kinds.get(name, Any) is not Any}
    kinds |= {name: kinds[name] | each for name, each in more.items()}
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    named = {
        name: each
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    mistakes = []
    for key, value in values.items():
        full = f"{path}.{key}" if path else key
        if key in apart:
            continue
        if key not in named:
            if not open_ended:
                offered = [name for name in named if name not in LIVE and words(kinds[name])]
                mistakes.append(f"{full} is not an option of {target.__name__}: {guess(key, offered, path)}")
        elif isinstance(value, str) and value == MISSING:
            mistakes.append(f"{full} has no value: give {full}=... ({words(kinds[key]) or 'any value'}).")
        elif value is not LATER and value != named[key].default and fits(value, kinds[key]) is False:
            mistakes.append(f"{full}={shown(value)} must be {words(kinds[key])}{ending(value, kinds[key])}")
    for name, parameter in named.items():
        needed = parameter.default is parameter.empty and name not in values and name not in LIVE
        if needed and (words(kinds[name]) or kinds[name] is Any):
            kind = words(kinds[name]) or "any value"
            mistakes.append(f"{path}.{name} is missing: give {path}.{name}=... ({kind}).")
    return mistakes


def annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of every parameter, Any where it says nothing or names what cannot be found."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    hints = dict.fromkeys(inspect.signature(target).parameters, Any)
    home = vars(inspect.getmodule(function) or typing)
    for name, hint in inspect.get_annotations(function).items():
        alone = types.SimpleNamespace(__annotations__={name: hint})
        with contextlib.suppress(NameError, TypeError, AttributeError, SyntaxError):
            hints |= {name: typing.get_type_hints(alone, home)[name]}
    return hints


def fits(value: Any, kind: Any) -> bool | None:
    """Whether a value from YAML can be passed where `kind` is asked for; None where `kind` does not tell."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, dict) and "_target_" in value:
        return True  # built before it is passed, and judged on its own
    if origin in (Union, types.UnionType):
        return fits_one_of(value, inner)
    if origin is typing.Annotated:
        return fits(value, inner[0])
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if kind is None or kind is types.NoneType:
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (str, bool):
        return isinstance(value, kind)
    if (origin or kind) in MAPPINGS:
        return isinstance(value, dict) and fits_list(list(value.values()), dict, inner[1:])
    if (origin or kind) in LISTS:
        return isinstance(value, list) and fits_list(value, origin, inner)
    if is_enum(kind):
        return value in choices(kind)
    if inspect.isclass(kind) and issubclass(kind, os.PathLike):
        return isinstance(value, str)
    return None


def fits_one_of(value: Any, kinds: tuple[Any, ...]) -> bool | None:
    enums = [kind for kind in kinds if is_enum(kind)]
    if enums and isinstance(value, str):  # "text, or this enum" means the enum's names
        return any(value in choices(kind) for kind in enums)
    verdicts = {fits(value, kind) for kind in kinds if kind is not types.NoneType}
    if True in verdicts or (value is None and types.NoneType in kinds):
        return True
    return False if False in verdicts else None


def fits_list(value: list[Any], origin: Any, inner: tuple[Any, ...]) -> bool:
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(
            fits(each, kind) is not False for each, kind in zip(value, inner, strict=True)
        )
    return not inner or all(fits(each, inner[0]) is not False for each in value)


def is_enum(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, enum.Enum)


def choices(kind: Any) -> list[Any]:
    """The values of an enum or a Literal; of anything else none."""
    if typing.get_origin(kind) is Literal:
        return list(typing.get_args(kind))
    return [member.value for member in kind] if is_enum(kind) else []


def words(kind: Any) -> str:
    """What YAML may say for `kind`; empty where it can say nothing, because only the program can make one."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return words_of_union(inner)
    if origin is typing.Annotated:
        return words(inner[0])
    if origin is Literal or is_enum(kind):
        return one_of(choices(kind))
    if (origin or kind) in MAPPINGS:
        each = words(inner[1]) if inner else ""
        return f"a mapping to {each}" if each else "a mapping"
    if (origin or kind) in LISTS:
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            return f"a list of {len(inner)}"
        each = words(inner[0]) if inner else ""
        return f"a list, each {each}" if each else "a list"
    if kind in WORDS:
        return WORDS[kind]
    return "a path" if inspect.isclass(kind) and issubclass(kind, os.PathLike) else ""


def words_of_union(kinds: tuple[Any, ...]) -> str:
    offered = [choice for kind in kinds for choice in choices(kind)]
    said = [one_of(offered)] if offered else []
    if any(map(is_enum, kinds)):  # the enum's names are all the text there is
        kinds = tuple(kind for kind in kinds if kind is not str)
    said += [words(kind) for kind in kinds if not choices(kind)]
    implied = WORDS[int] if WORDS[float] in said else ""
    said = [each for each in dict.fromkeys(said) if each not in ("", implied)]
    return " or ".join(said) if said != ["null"] else ""


def one_of(offered: list[Any]) -> str:
    named = list(dict.fromkeys(map(shown, offered)))
    return named[0] if len(named) == 1 else f"one of {', '.join(named)}"


def ending(value: Any, kind: Any) -> str:
    """The end of a sentence about a misspelt choice: the one that was probably meant."""
    offered = [choice for each in (kind, *typing.get_args(kind)) for choice in choices(each)]
    near = difflib.get_close_matches(str(value), [str(choice) for choice in offered], n=1)
    return f": did you mean {near[0]}?" if near else "."


def guess(name: str, offered: Iterable[str], path: str = "") -> str:
    """The end of a sentence about an unknown name: the nearest one, or all there are."""
    offered, lead = list(offered), f"{path}." if path else ""
    near = difflib.get_close_matches(name, offered, n=1)
    return f"did you mean {lead}{near[0]}?" if near else f"known are {', '.join(offered)}."


def shown(value: Any) -> str:
    """A value as one would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    return str(value) or "''"
