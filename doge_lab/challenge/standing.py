"""Where a challenger stands: one row per block, and what the seeds say of it against each rival.

challenge.json
block, kind, mode, name     the challenger; what its arm is called
frame, code, stored_code    model, tasks and protocol; the version that trained here, and that of the records
device                      where it was trained
tasks                       labels, in order
rows[]                      name, trained: `here` | `stored`, cost, tasks{label: {bits, accuracy, guess_bits, seconds,
                            diverged, failed, saturated, train, grid}}; seconds {mean, half, n} of one run, of a
                            stored row estimated, null where nothing says how long it takes here
rivals[]                    name, tasks{label: {bits: challenger minus rival by seed, probability, told_apart,
                            seeds_needed, both: `full` | `guess` | null}}, costs_no_more, costs_no_less, replaces,
                            replaced_by: probabilities, null where unknown: one seed, or a task that neither learned
verdict                     replaces[], may_replace[], replaced_by[]: names
agreement[]                 of rivals that were trained here and are stored: name, task, stored, here, agrees
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from doge_lab.experiment.result import CEILING, by_seed
from doge_lab.stats import Interval, compare, differences, dominance, t_interval

Arm = Mapping[str, Any]
SURE = 0.95
"""From this probability of dominance on a block is said to replace another."""
MATCHED = 0.05
"""FLOPs this close, as a share, are the same: matching leaves widths, and so FLOPs, a step apart."""
EXACT = ("cache_bytes", "flops_per_token")


def nearest(challenger: Arm, shelf: Iterable[Arm], count: int | None) -> list[str]:
    """The blocks whose cache is the most like the challenger's, FLOPs breaking ties: known before any training."""

    def distance(arm: Arm) -> tuple[float, ...]:
        mine, theirs = challenger["cost"], arm["cost"]
        return tuple(abs(mine[name] - theirs[name]) for name in EXACT)

    return [arm["name"] for arm in sorted(shelf, key=distance)[:count]]


def standing(
    here: Mapping[str, Any], challenger: str, stored: Mapping[str, Any] | None, *, clock: str = "cpu_seconds"
) -> dict[str, Any]:
    """`challenge.json` from the result of the challenger and of the rivals that were trained beside it.

    clock: `cpu_seconds` of a run, or `seconds` where a device was busy and not the processor.
    """
    trained = {arm["name"]: arm for arm in here["arms"]}
    known = {arm["name"]: arm for arm in (stored["arms"] if stored else ())}
    others = {name: arm for name, arm in known.items() if name not in trained}
    pace = _pace(trained, known) if clock == "cpu_seconds" else None
    mine = trained[challenger]
    rivals = [_rival(mine, arm, here["tasks"]) for name, arm in {**trained, **others}.items() if name != challenger]
    return {
        "tasks": here["tasks"],
        "rows": [
            *(_row(arm, "here", clock, 1.0) for arm in trained.values()),
            *(_row(arm, "stored", clock, pace) for arm in others.values()),
        ],
        "rivals": rivals,
        "verdict": _verdict(rivals),
        "agreement": list(_agreement(trained, known)),
    }


def _row(arm: Arm, trained: str, clock: str, pace: float | None) -> dict[str, Any]:
    kept = ("bits", "accuracy", "diverged", "failed", "saturated", "train")
    tasks = {
        label: {
            **{name: cell[name] for name in kept},
            "grid": cell.get("grid", []),  # records do not keep it
            "guess_bits": _guess(cell),
            "seconds": _seconds(cell, clock, pace),
        }
        for label, cell in arm["tasks"].items()
    }
    return {"name": arm["name"], "trained": trained, "cost": arm["cost"], "tasks": tasks}


def _seconds(cell: Mapping[str, Any], clock: str, pace: float | None) -> dict[str, Any] | None:
    known = [pace * seed[clock] for seed in cell["seeds"] if seed[clock]] if pace else []
    return t_interval(known)._asdict() if known else None


def _pace(trained: Mapping[str, Arm], known: Mapping[str, Arm]) -> float | None:
    """How many times as long this machine takes as the one of the records: median over what both trained."""
    ratios = [
        mine["cpu_seconds"] / theirs["cpu_seconds"]
        for name in trained.keys() & known.keys()
        for label, mine in trained[name]["tasks"].items()
        if (theirs := known[name]["tasks"].get(label)) and mine["cpu_seconds"] and theirs["cpu_seconds"]
    ]
    return median(ratios) if ratios else None


def _rival(mine: Arm, theirs: Arm, tasks: Sequence[str]) -> dict[str, Any]:
    pairs = {label: (mine["tasks"][label], theirs["tasks"][label]) for label in tasks}
    gains = [_gains(*pair) for pair in pairs.values()]
    saved = _saved(mine, theirs)
    known = not any(_both(_guesses, *pair) for pair in pairs.values())  # what neither learned says nothing of them
    return {
        "name": theirs["name"],
        "tasks": {label: _compared(*pair) for label, pair in pairs.items()},
        "costs_no_more": min(saved) >= 0,
        "costs_no_less": max(saved) <= 0,
        "replaces": dominance(saved, gains) if known else None,
        "replaced_by": dominance([-s for s in saved], [[-g for g in each] for each in gains]) if known else None,
    }


def _gains(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[float]:
    """Bits that the challenger holds more, by seed; none where both hold all there is."""
    apart = differences(by_seed(mine), by_seed(theirs))
    return [0.0] * len(apart) if _both(_at_ceiling, mine, theirs) else apart


def _both(alike: Callable[[Mapping[str, Any]], bool], *cells: Mapping[str, Any]) -> bool:
    return all(map(alike, cells))


def _at_ceiling(cell: Mapping[str, Any]) -> bool:
    scored = [s["metrics"] for s in cell["seeds"]]
    return bool(scored) and all(found and found["bits"] > CEILING * found["max_bits"] for found in scored)


def _guesses(cell: Mapping[str, Any]) -> bool:
    """Whether no seed earns more than a guesser who recalls nothing."""
    guess = _guess(cell)
    return guess is not None and max(by_seed(cell).values()) <= guess


def _guess(cell: Mapping[str, Any]) -> float | None:
    known = [s["metrics"]["guess_bits"] for s in cell["seeds"] if s["metrics"] and "guess_bits" in s["metrics"]]
    return max(known) if known else None


def _compared(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    found = compare(by_seed(mine), by_seed(theirs))
    return {
        "bits": found.difference._asdict() if found.difference else None,
        "probability": found.probability,
        "told_apart": found.told_apart,
        "seeds_needed": found.seeds_needed,
        "both": "full" if _both(_at_ceiling, mine, theirs) else "guess" if _both(_guesses, mine, theirs) else None,
    }


def _saved(mine: Arm, theirs: Arm) -> list[float]:
    """Cache bytes and FLOPs that the challenger needs less; FLOPs that are about the same count as the same."""
    cache, flops = (theirs["cost"][name] - mine["cost"][name] for name in EXACT)
    about_same = abs(flops) <= MATCHED * max(theirs["cost"]["flops_per_token"], mine["cost"]["flops_per_token"])
    return [float(cache), 0.0 if about_same else float(flops)]


def _verdict(rivals: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    def sure(probability: float | None) -> bool:
        return probability is not None and probability >= SURE

    replaces = [rival["name"] for rival in rivals if sure(rival["replaces"])]
    return {
        "replaces": replaces,
        "may_replace": [rival["name"] for rival in rivals if _open(rival) and rival["name"] not in replaces],
        "replaced_by": [rival["name"] for rival in rivals if sure(rival["replaced_by"])],
    }


def _open(rival: Mapping[str, Any]) -> bool:
    """Whether more seeds might show it replaced: it costs no less, was compared everywhere, and is nowhere better."""
    compared = rival["tasks"].values()
    lost = any(each["told_apart"] and each["bits"]["mean"] < 0 and each["both"] != "full" for each in compared)
    return rival["costs_no_more"] and not lost and all(each["probability"] is not None for each in compared)


def _agreement(trained: Mapping[str, Arm], known: Mapping[str, Arm]) -> Iterable[dict[str, Any]]:
    """Whether what was trained here came out as it is stored: within the wider of the two intervals."""
    for name in (name for name in trained if name in known):
        for label, cell in trained[name]["tasks"].items():
            here, stored = cell["bits"], known[name]["tasks"][label]["bits"]
            if here and stored:
                allowed = max(Interval(**each).half or 0.0 for each in (here, stored))
                agrees = abs(here["mean"] - stored["mean"]) <= allowed
                yield {"name": name, "task": label, "stored": stored, "here": here, "agrees": agrees}
