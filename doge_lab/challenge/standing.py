"""Where a challenger stands: one row per block, and what the seeds say of it against each rival.

challenge.json
block, kind, mode, name     the challenger; what its arm is called
frame, code                 model, tasks and protocol; the version that trained here
tasks                       labels, in order
rows[]                      name, trained: `here` | `stored`, cost, tasks{label: {bits, accuracy, seconds, diverged,
                            failed, saturated, train}}; seconds {mean, half, n} of one run, of a stored row estimated
rivals[]                    name, tasks{label: {bits: challenger minus rival by seed, probability, told_apart,
                            seeds_needed}}, costs_no_more, costs_no_less, replaces, replaced_by: probabilities
verdict                     replaces[], may_replace[], replaced_by[]: names
agreement[]                 of rivals that were trained here and are stored: name, task, stored, here, agrees
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from doge_lab.experiment.result import by_seed
from doge_lab.stats import Interval, compare, differences, dominance, t_interval

Arm = Mapping[str, Any]
SURE = 0.95
"""From this probability of dominance on a block is said to replace another."""
MATCHED = 0.05
"""FLOPs this close, as a share, are the same: matching leaves widths, and so FLOPs, a step apart."""
CEILING = 0.99
"""Two that both hold more than this share of what a task asks are equal on it: it asks too little to tell."""
EXACT = ("cache_bytes", "flops_per_token")


def nearest(challenger: Arm, stored: Iterable[Arm], count: int) -> list[str]:
    """The blocks whose cache, and then whose FLOPs, are the most like the challenger's: known before any training."""

    def distance(arm: Arm) -> tuple[float, ...]:
        mine, theirs = challenger["cost"], arm["cost"]
        return tuple(abs(mine[name] - theirs[name]) for name in EXACT)

    return [arm["name"] for arm in sorted(stored, key=distance)[:count]]


def standing(here: Mapping[str, Any], challenger: str, stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """`challenge.json` from the result of the challenger and of the rivals that were trained beside it."""
    trained = {arm["name"]: arm for arm in here["arms"]}
    known = {arm["name"]: arm for arm in (stored["arms"] if stored else ())}
    others = {name: arm for name, arm in known.items() if name not in trained}
    pace = _pace(trained, known)
    mine = trained[challenger]
    rivals = [_rival(mine, arm, here["tasks"]) for name, arm in {**trained, **others}.items() if name != challenger]
    return {
        "tasks": here["tasks"],
        "rows": [
            *(_row(arm, "here", 1.0) for arm in trained.values()),
            *(_row(arm, "stored", pace) for arm in others.values()),
        ],
        "rivals": rivals,
        "verdict": _verdict(rivals),
        "agreement": list(_agreement(trained, known)),
    }


def _row(arm: Arm, trained: str, pace: float) -> dict[str, Any]:
    kept = ("bits", "accuracy", "diverged", "failed", "saturated", "train")
    tasks = {
        label: {name: cell[name] for name in kept} | {"seconds": _seconds(cell, pace)}
        for label, cell in arm["tasks"].items()
    }
    return {"name": arm["name"], "trained": trained, "cost": arm["cost"], "tasks": tasks}


def _seconds(cell: Mapping[str, Any], pace: float) -> dict[str, Any] | None:
    known = [pace * seed["cpu_seconds"] for seed in cell["seeds"] if seed["cpu_seconds"]]
    return t_interval(known)._asdict() if known else None


def _pace(trained: Mapping[str, Arm], known: Mapping[str, Arm]) -> float:
    """How many times as long this machine takes as the one of the records: median over what both trained."""
    ratios = [
        mine["cpu_seconds"] / theirs["cpu_seconds"]
        for name in trained.keys() & known.keys()
        for label, mine in trained[name]["tasks"].items()
        if (theirs := known[name]["tasks"].get(label)) and mine["cpu_seconds"] and theirs["cpu_seconds"]
    ]
    return median(ratios) if ratios else 1.0


def _rival(mine: Arm, theirs: Arm, tasks: Sequence[str]) -> dict[str, Any]:
    gains = {label: _gains(mine["tasks"][label], theirs["tasks"][label]) for label in tasks}
    saved = _saved(mine, theirs)
    return {
        "name": theirs["name"],
        "tasks": {label: _compared(mine["tasks"][label], theirs["tasks"][label]) for label in tasks},
        "costs_no_more": min(saved) >= 0,
        "costs_no_less": max(saved) <= 0,
        "replaces": dominance(saved, list(gains.values())),
        "replaced_by": dominance([-gain for gain in saved], [[-gain for gain in each] for each in gains.values()]),
    }


def _gains(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[float]:
    """Bits that the challenger holds more, by seed."""
    apart = differences(by_seed(mine), by_seed(theirs))
    return [0.0] * len(apart) if _at_ceiling(mine) and _at_ceiling(theirs) else apart


def _at_ceiling(cell: Mapping[str, Any]) -> bool:
    seeds = cell["seeds"]
    return all(s["metrics"] and s["metrics"]["bits"] > CEILING * s["metrics"]["max_bits"] for s in seeds)


def _compared(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    found = compare(by_seed(mine), by_seed(theirs))
    return {
        "bits": found.difference._asdict() if found.difference else None,
        "probability": found.probability,
        "told_apart": found.told_apart,
        "seeds_needed": found.seeds_needed,
    }


def _saved(mine: Arm, theirs: Arm) -> list[float]:
    """Cache bytes and FLOPs that the challenger needs less; FLOPs that are about the same count as the same."""
    cache, flops = (theirs["cost"][name] - mine["cost"][name] for name in EXACT)
    about_same = abs(flops) <= MATCHED * max(theirs["cost"]["flops_per_token"], mine["cost"]["flops_per_token"])
    return [float(cache), 0.0 if about_same else float(flops)]


def _verdict(rivals: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    def lost(rival: Mapping[str, Any]) -> bool:
        return any(each["told_apart"] and each["bits"]["mean"] < 0 for each in rival["tasks"].values())

    def sure(probability: float | None) -> bool:
        return probability is not None and probability >= SURE

    replaces = [rival["name"] for rival in rivals if sure(rival["replaces"])]
    return {
        "replaces": replaces,
        "may_replace": [
            rival["name"]
            for rival in rivals
            if rival["costs_no_more"] and not lost(rival) and rival["name"] not in replaces
        ],
        "replaced_by": [rival["name"] for rival in rivals if sure(rival["replaced_by"])],
    }


def _agreement(trained: Mapping[str, Arm], known: Mapping[str, Arm]) -> Iterable[dict[str, Any]]:
    """Whether what was trained here came out as it is stored: within the wider of the two intervals."""
    for name in trained.keys() & known.keys():
        for label, cell in trained[name]["tasks"].items():
            here, stored = cell["bits"], known[name]["tasks"][label]["bits"]
            if here and stored:
                allowed = max(Interval(**each).half or 0.0 for each in (here, stored))
                agrees = abs(here["mean"] - stored["mean"]) <= allowed
                yield {"name": name, "task": label, "stored": stored, "here": here, "agrees": agrees}
