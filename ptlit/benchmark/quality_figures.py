"""From trials to figures: one row for each engine and method, its means over seeds and folds."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

Figures = dict[str, Any]
Trials = Sequence[Mapping[str, Any]]


def rows_of(trials: Trials) -> list[Figures]:
    """At the learning rate that was best on validation; where nothing is validated, in training."""
    return [row_of(best_rate(same)) for same in by_learner(trials)]


def rates_of(trials: Trials) -> list[Figures]:
    """How good the learning rates are that were tried, by what one of them was chosen."""
    groups = [(same[0], rated(same)) for same in by_learner(trials)]
    return [
        {
            "engine": first["engine"],
            "method": first["method"],
            "measure": measure(first),
            "seeds": shared_seeds,
            "rates": [{"lr": rate, "value": abs(good)} for rate, good in sorted(merits.items())],
        }
        for first, (merits, shared_seeds) in groups
        if len(merits) > 1
    ]


def by_learner(trials: Trials) -> list[Trials]:
    groups: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
    for trial in trials:
        groups.setdefault((trial["engine"], trial["method"]), []).append(trial)
    return list(groups.values())


def best_rate(group: Trials) -> Trials:
    merits, _ = rated(group)
    best = max(merits, key=lambda rate: merits[rate])
    return [trial for trial in group if trial["lr"] == best]


def rated(group: Trials) -> tuple[dict[Any, float], list[int]]:
    """By what all rates were tried with: one that was tried with a lucky seed alone is no better for it."""
    by_rate: dict[Any, dict[tuple[int, int | None], float]] = {}
    for trial in group:
        by_rate.setdefault(trial["lr"], {})[trial["seed"], trial["fold"]] = merit(trial)
    shared = set.intersection(*(set(same) for same in by_rate.values()))
    merits = {rate: mean(same[each] for each in shared or same) for rate, same in by_rate.items()}
    return merits, sorted({seed for seed, _ in shared})


def merit(trial: Mapping[str, Any]) -> float:
    """More is better."""
    name, best = measure(trial), trial["best"]
    if name == "macro_f1":
        return best[name] if best else 0.0
    loss = trial["train_loss"] if name == "train_loss" else best["loss"] if best else None
    return -loss if loss is not None and loss == loss else -math.inf


def measure(trial: Mapping[str, Any]) -> str:
    """What a learning rate is chosen by."""
    validated = trial["curve"][0] if trial["curve"] else {}
    return next((name for name in ("macro_f1", "loss") if name in validated), "train_loss")


def row_of(same: Trials) -> Figures:
    """`same` differ in nothing but seed and fold."""
    first = same[0]
    tested = {name: [trial["test"][name] for trial in same] for name in first["test"]}
    trained = [trial["train_loss"] for trial in same if trial["train_loss"] is not None]
    validated = [trial["best"] for trial in same if trial["best"]]
    name = headline(same)
    ends = [trial["curve"][-1] for trial in same if first["trainable"]]
    return {
        "engine": first["engine"],
        "method": first["method"],
        "lr": first["recipe"]["optim"]["lr"] if first["recipe"] else first["lr"],
        "seeds": list(dict.fromkeys(trial["seed"] for trial in same)),
        "trials": len(same),
        "trainable": first["trainable"],
        **{key: mean(values) for key, values in tested.items()},
        **{f"{key}_range": [min(values), max(values)] for key, values in tested.items()},
        "val_best": mean(best[name] for best in validated) if validated else None,
        "examples_at_best": mean(best["examples"] for best in validated) if validated else None,
        "train_loss": mean(trained) if trained else None,
        "seconds": mean(end["seconds"] for end in ends) if ends else None,
        "cpu_seconds": mean(end["cpu_seconds"] for end in ends) if ends else None,
        "peak_mb": max(trial["peak_mb"] for trial in same),
        "curve": mean_curve(same),
    }


def headline(trials: Trials) -> str:
    """What learners are compared by."""
    return "macro_f1" if "macro_f1" in trials[0]["test"] else "perplexity"


def milestones(trials: Trials) -> list[str]:
    """By what it is said how soon a learner is as good as another: scores scatter more than the loss."""
    return ["macro_f1", "loss"] if headline(trials) == "macro_f1" else ["perplexity"]


def mean_curve(same: Trials) -> list[Figures]:
    """Point by point: all were validated after the same examples. A value that some lack is left out."""
    found = []
    for points in zip(*(trial["curve"] for trial in same), strict=False):
        shared = [key for key in points[0] if all(point.get(key) is not None for point in points)]
        found.append({key: mean(point[key] for point in points) for key in shared})
    return found


def reached(rows: Sequence[Figures], name: str, same_in_peft: Mapping[str, str]) -> list[Figures]:
    """After how many examples each of ptlit's methods is as good on validation as PEFT's ever is."""
    peers = {row["method"]: row for row in rows if row["engine"] == "peft" and has(row, name)}
    ours = [row for row in rows if row["engine"] == "ptlit" and has(row, name)]
    found = []
    for row in ours:
        peer = peers.get(same_in_peft.get(row["method"], row["method"]))
        if peer is None:
            continue
        as_good, best = better(name)
        target = best(point[name] for point in peer["curve"])
        theirs = next(point["examples"] for point in peer["curve"] if point[name] == target)
        examples = next((p["examples"] for p in row["curve"] if as_good(p[name], target)), None)
        found.append(
            {
                "method": row["method"],
                "measure": name,
                "target": target,
                "peft_examples": theirs,
                "ptlit_examples": examples,
                "fraction": examples / theirs if examples is not None and theirs else None,
            }
        )
    return found


def has(row: Figures, name: str) -> bool:
    return len(row["curve"]) > 1 and all(name in point for point in row["curve"])


def better(name: str) -> tuple[Callable[[float, float], bool], Callable[..., float]]:
    if name in ("perplexity", "loss"):
        return (lambda value, target: value <= target), min
    return (lambda value, target: value >= target), max
