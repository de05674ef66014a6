"""An experiment's result.json, read: what the tables and the figures of docs/laws.md are made of.

    arm          bits on test by seed           per parameter            against another arm
    moe          83,416  88,518  85,453         1.42 ± 0.11 each         0.81 times as many (0.75 to 0.88)

Arms are compared seed by seed: of bits, the difference; of bits per something, the ratio, whose interval is that of the
mean of logarithms.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from doge_lab.stats import Interval, differences, t_interval

Cost = Literal["params", "active_params", "cache_bytes"]


class Ratio(NamedTuple):
    """A geometric mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_one(self) -> bool:
        return not self.low <= 1 <= self.high


class Arm(NamedTuple):
    """One arm on one task.

    `seeds`: bits on test by seed, 0 where training diverged; `asked`: the bits there are; `guess`: of recall, what a
    reader earns who only knows which values occurred.
    """

    name: str
    cost: Mapping[str, Any]
    seeds: Mapping[int, float]
    at_edge: bool
    saturated: int
    asked: float
    guess: float

    def bits(self, per: Cost | None = None) -> Interval:
        """Bits, or bits per byte or parameter."""
        return t_interval(list(self.held(per).values()))

    def held(self, per: Cost | None = None) -> dict[int, float]:
        return {seed: bits / (self.cost[per] if per else 1) for seed, bits in self.seeds.items()}

    def more_than(self, other: "Arm") -> Interval:
        """How many bits more than `other`, paired by seed."""
        return t_interval(differences(self.seeds, other.seeds))

    def times(self, other: "Arm", per: Cost) -> Ratio:
        """How many times as many bits per byte or parameter as `other`, paired by seed."""
        logs = ({seed: math.log(bits) for seed, bits in arm.held(per).items()} for arm in (self, other))
        mean, half, n = t_interval(differences(*logs))
        if half is None:
            raise ValueError(f"{n} seed gives no interval")
        return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


class Law(NamedTuple):
    """One experiment with one task."""

    name: str
    task: Mapping[str, Any]
    arms: Mapping[str, Arm]

    @property
    def asked(self) -> float:
        """The bits there are, where all arms are asked the same."""
        (asked,) = {arm.asked for arm in self.arms.values()}
        return asked


def read(path: Path) -> Law:
    """The law in a result.json."""
    result = json.loads(path.read_text(encoding="utf-8"))
    (task,) = result["tasks"]
    arms = {arm["name"]: _arm(arm, arm["tasks"][task]) for arm in result["arms"]}
    return Law(result["name"], result["arms"][0]["tasks"][task]["task"], arms)


def _arm(arm: Mapping[str, Any], scored: Mapping[str, Any]) -> Arm:
    metrics = {one["seed"]: one["metrics"] for one in scored["seeds"] if one["metrics"] or one["diverged"]}
    known = next(filter(None, metrics.values()))
    return Arm(
        name=arm["name"],
        cost=arm["cost"],
        seeds={seed: found["bits"] if found else 0.0 for seed, found in metrics.items()},
        at_edge=scored["train"]["at_edge"],
        saturated=scored["saturated"],
        asked=known["max_bits"],
        guess=known.get("guess_bits", 0.0),
    )
