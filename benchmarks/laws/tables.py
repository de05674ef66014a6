"""The tables of docs/laws.md from an experiment's result.json: what each arm holds, and how arms compare.

python benchmarks/laws/tables.py benchmarks/laws/results/experts.json
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from measured import Arm, Cost, Law, Ratio, read

from doge_lab.stats import Interval

COLUMNS = {"cache_bytes": "cache bytes", "params": "parameters", "active_params": "active"}
PER: dict[Cost, str] = {"params": "per parameter", "active_params": "per active parameter"}

SHOWN: dict[str, tuple[list[str], list[Cost]]] = {
    "recall_vs_state": (["cache_bytes"], []),
    "inner_func_attn": (["cache_bytes"], []),
    "inner_func_attn_32_pairs": (["cache_bytes"], []),
    "capacity_vs_size": (["params"], ["params"]),
}
"""Law -> the costs that its table shows, and those that bits are divided by; otherwise both counts of parameters."""
PARAMETERS: tuple[list[str], list[Cost]] = (["params", "active_params"], ["params", "active_params"])

COMPARED: dict[str, list[tuple[str, str]]] = {
    "experts": [
        ("glu", "mlp"),
        ("none", "mlp"),
        ("moe, 8 experts, 1 active", "mlp"),
        ("peer, 144 experts", "mlp"),
        ("cdmoe, 144 experts", "mlp"),
    ],
    "experts_same_total": [
        ("moe, 32 experts, 1 active", "mlp, same total"),
        ("peer, 361 experts", "mlp, same total"),
        ("moe, 32 experts, 1 active", "mlp, same active"),
        ("peer, 361 experts", "mlp, same active"),
    ],
    "cdmoe": [
        ("cdmoe 64, parallel", "mlp, total as cdmoe 64"),
        ("cdmoe 64, parallel", "glu, total as cdmoe 64"),
        ("cdmoe 256, parallel", "mlp, total as cdmoe 256"),
        ("cdmoe 64, parallel", "mlp, active as cdmoe 64"),
        ("cdmoe 64, parallel", "glu, active as cdmoe 64"),
        ("cdmoe 256, parallel", "mlp, active as cdmoe 64"),
        ("cdmoe 256, parallel", "cdmoe 64, parallel"),
        ("cdmoe 64, serial", "cdmoe 64, parallel"),
        ("cdmoe 64, parallel, published", "cdmoe 64, parallel"),
        ("cdmoe 64, serial, published", "cdmoe 64, serial"),
        ("glu, total as cdmoe 64", "mlp, total as cdmoe 64"),
    ],
    "inner_func_attn": [
        ("attention, rotary", "attention"),
        ("inner", "attention"),
        ("dynamic mask, 64 keys", "attention"),
        ("dynamic mask, 32 keys", "attention"),
        ("inner, rotary", "inner"),
        ("inner, learned mask", "inner"),
        ("inner, 1 of 2 values", "inner"),
        ("inner, softmax over all", "inner"),
        ("inner, published", "inner"),
        ("inner, hidden cache", "inner"),
        ("inner, 600 steps", "attention, 600 steps"),
    ],
    "inner_func_attn_32_pairs": [
        ("inner", "attention"),
        ("inner, learned mask", "attention"),
        ("inner, published", "attention"),
        ("dynamic mask, 128 keys", "attention"),
        ("inner, learned mask", "inner"),
        ("inner, published", "inner"),
        ("attention, 900 steps", "attention"),
    ],
}
"""Law -> what is said to differ: an arm and the arm that it is held against."""


def main() -> None:
    for name in sys.argv[1:]:
        law = read(Path(name))
        print(f"\n{law.name}\n")
        print("\n".join(table(law)))
        if law.name in COMPARED:
            print()
            print("\n".join(comparisons(law)))


def table(law: Law) -> Iterator[str]:
    """What each arm costs and holds: the mean ± half the 95 % t interval over seeds."""
    costs, pers = SHOWN.get(law.name, PARAMETERS)
    yield _line(["arm", *(COLUMNS[cost] for cost in costs), "bits", *(PER[per] for per in pers)])
    yield f"|---|{'---:|' * (len(costs) + 1 + len(pers))}"
    for arm in law.arms.values():
        counts = [f"{arm.cost[cost]:,}" for cost in costs]
        bits = _spread(arm.bits(), digits=0 if arm.asked > 1000 else 1)
        yield _line([arm.name, *counts, f"{bits}{_notes(arm)}", *(_spread(arm.bits(per), digits=2) for per in pers)])


def comparisons(law: Law) -> Iterator[str]:
    """How arms differ seed by seed; in bold where the 95 % interval does not hold "no difference"."""
    pairs = [
        (law.arms[name], law.arms[other]) for name, other in COMPARED[law.name] if {name, other} <= law.arms.keys()
    ]
    if not SHOWN.get(law.name, PARAMETERS)[1]:
        yield from ("| arm | against | bits more |", "|---|---|---:|")
        for arm, other in pairs:
            more = arm.more_than(other)
            yield _line([arm.name, other.name, _bold(_spread(more, digits=1, sign="+"), more.excludes_zero)])
        return
    yield from ("| arm | against | per parameter, times | per active parameter, times |", "|---|---|---:|---:|")
    for arm, other in pairs:
        yield _line([arm.name, other.name, *(_times(arm.times(other, per)) for per in PER)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(interval: Interval, digits: int, sign: str = "") -> str:
    mean, half, _ = interval
    shown = f"{mean:{sign},.{digits}f}".replace("-", "−")
    return f"{shown} ± {half:,.{digits}f}" if half is not None else f"{shown} (one seed)"


def _times(ratio: Ratio) -> str:
    return _bold(f"{ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})", ratio.excludes_one)


def _bold(text: str, really: bool) -> str:
    return f"**{text}**" if really else text


def _notes(arm: Arm) -> str:
    saturated = f", saturated with {arm.saturated} of {len(arm.seeds)} seeds" if arm.saturated else ""
    return f"{', rate at the edge' if arm.at_edge else ''}{saturated}"


if __name__ == "__main__":
    main()
