"""What came out at every size, and how far the orders agree: plain data, from an experiment's result.

scale.json
source                  what was compared
sizes[]                 name (`1x`), factor, params: mean over the candidates
candidates              names, in the order of the source
tasks{label}            tau, low, high, n, chance    of the smallest against the largest size: doge_lab.stats.Agreement;
                        n: candidates, without those that failed at a size; null where fewer than two are left
                        order: size -> candidates, most bits first
                        between[]: first, second, tau, low, high, n, chance    of every two sizes that follow each other
result                  the experiment's result.json, arms `CANDIDATE, SIZE`
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from doge_lab.experiment.result import CEILING, by_seed
from doge_lab.stats import Agreement, agreement

SCALE = "scale.json"
Bits = Mapping[str, Mapping[str, Sequence[float]]]
"""Size -> candidate -> bits by seed."""


def size_name(factor: float) -> str:
    return f"{factor:g}x"


def arm_name(candidate: str, size: str) -> str:
    return f"{candidate}, {size}"


def facts_of(result: Mapping[str, Any], candidates: Sequence[str], factors: Sequence[float]) -> dict[str, Any]:
    """`scale.json` without where it comes from."""
    arms = {arm["name"]: arm for arm in result["arms"]}
    sizes = [size_name(factor) for factor in factors]
    return {
        "sizes": [
            {
                "name": size,
                "factor": factor,
                "params": round(fmean(arms[arm_name(name, size)]["cost"]["params"] for name in candidates)),
            }
            for size, factor in zip(sizes, factors, strict=True)
        ],
        "candidates": list(candidates),
        "tasks": {task: _task(_bits(arms, task, candidates, sizes), sizes) for task in result["tasks"]},
        "result": dict(result),
    }


def _bits(arms: Mapping[str, Any], task: str, candidates: Sequence[str], sizes: Sequence[str]) -> Bits:
    """Bits by the seeds that all have, of the candidates that could be scored at every size."""
    scored = {
        size: {name: _bounded(arms[arm_name(name, size)]["tasks"][task]) for name in candidates} for size in sizes
    }
    names = [name for name in candidates if all(scored[size][name] for size in sizes)]
    common = set.intersection(*(set(scored[size][name]) for size in sizes for name in names)) if names else set()
    return {size: {name: [scored[size][name][seed] for seed in sorted(common)] for name in names} for size in sizes}


def _bounded(cell: Mapping[str, Any]) -> dict[int, float]:
    """Bits by seed; all there are where the model holds nearly all."""
    most = {seed["seed"]: CEILING * seed["metrics"]["max_bits"] for seed in cell["seeds"] if seed["metrics"]}
    return {seed: min(bits, most.get(seed, bits)) for seed, bits in by_seed(cell).items()}


def _task(bits: Bits, sizes: Sequence[str]) -> dict[str, Any]:
    """The agreement; none where fewer than two candidates have a seed in common at every size."""
    if len(bits[sizes[0]]) < 2 or not next(iter(bits[sizes[0]].values())):
        nothing = dict.fromkeys(Agreement._fields) | {"n": len(bits[sizes[0]])}
        return {**nothing, "order": {}, "between": []}
    return {
        **_agreement(bits, sizes[0], sizes[-1])._asdict(),
        "order": {size: sorted(by, key=lambda name: -fmean(by[name])) for size, by in bits.items()},
        "between": [
            {"first": first, "second": second, **_agreement(bits, first, second)._asdict()}
            for first, second in pairwise(sizes)
        ],
    }


def _agreement(bits: Bits, first: str, second: str) -> Agreement:
    return agreement(list(bits[first].values()), list(bits[second].values()))
