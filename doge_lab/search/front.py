"""Trials, candidates and the front among them.

A *trial* is one draw from the space. Trials whose resolved configuration is the same are one *candidate* with
several seeds; the front is drawn over candidates, by the mean of their seeds, so that a lucky repeat wins nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

Audits = dict[str, dict[str, dict[str, Any]]]
"""Fingerprint -> seed -> what a second look found (`doge_lab.engine.auditor.audit`)."""
Direction = Literal["minimize", "maximize"]
State = Literal["complete", "rejected", "failed", "running", "waiting"]


@dataclass(frozen=True)
class Trial:
    """One draw.

    number: the trial's number in the study.
    state: `rejected` was never trained (over budget, or no width meets the match); `reason` says why.
    candidate: fingerprint of the resolved configuration without its seed.
    params: what was drawn, by flat path.
    config: the resolved run configuration (with the solved width).
    values: objective name -> value; empty unless complete.
    metrics: task name -> its metrics, as the task's record holds them.
    cost: `doge_lab.cost.Cost.dump()` at the objective's context; empty when the model could not be built.
    seconds: wall seconds of training and scoring.
    sources: task name -> name of the source that computed its metrics (`doge_lab.identity.Source`).
    """

    number: int
    state: State
    candidate: str = ""
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """The complete trials of one configuration.

    confirmed: the values measured on fresh test data, one mapping per seed; confirmed_seeds: those seeds.
    unconfirmed: why a seed could not be measured there, by seed.
    audits: what a second look at the trained model found, by seed.
    """

    trials: tuple[Trial, ...]
    confirmed: tuple[Mapping[str, float], ...] = ()
    confirmed_seeds: tuple[int, ...] = ()
    unconfirmed: Mapping[str, str] = field(default_factory=dict)
    audits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def struck(self) -> str:
        """Why the candidate may not stand on the front: a promise that its trained model breaks. Empty when it may."""
        return next((found["reason"] for found in self.audits.values() if found["reason"]), "")

    @property
    def number(self) -> int:
        """The first trial's number, by which the candidate is called."""
        return self.trials[0].number

    @cached_property
    def values(self) -> dict[str, float]:
        """Mean over seeds of what the search saw."""
        return {name: fmean(trial.values[name] for trial in self.trials) for name in self.trials[0].values}

    def fresh(self, objective: str) -> dict[int, float]:
        """The objective on fresh test data, by seed."""
        found = zip(self.confirmed_seeds, self.confirmed, strict=True)
        return {seed: values[objective] for seed, values in found if objective in values}


def candidates(
    trials: Sequence[Trial],
    confirmed: Mapping[str, Mapping[str, Mapping[str, float]]],
    unconfirmed: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    audits: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType({}),
) -> list[Candidate]:
    """Group the complete trials; a fingerprint has values on test data, or a reason why not, by seed."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.state == "complete":
            groups.setdefault(trial.candidate, []).append(trial)
    found = []
    for name, group in groups.items():
        by_seed = confirmed.get(name, {})
        failed = {seed: reason for seed, reason in unconfirmed.get(name, {}).items() if seed not in by_seed}
        seeds = tuple(int(seed) for seed in by_seed)
        found.append(Candidate(tuple(group), tuple(by_seed.values()), seeds, failed, audits.get(name, {})))
    return found


def dominates(a: Mapping[str, float], b: Mapping[str, float], objectives: Mapping[str, Direction]) -> bool:
    """True when `a` is nowhere worse than `b` and somewhere better."""
    signed = [
        ((a[name], b[name]) if direction == "maximize" else (-a[name], -b[name]))
        for name, direction in objectives.items()
    ]
    return all(x >= y for x, y in signed) and any(x > y for x, y in signed)


def front(everyone: Sequence[Candidate], objectives: Mapping[str, Direction]) -> list[Candidate]:
    """The candidates that no other dominates, sorted by the first objective, best first."""
    kept = [
        candidate
        for candidate in everyone
        if not any(dominates(other.values, candidate.values, objectives) for other in everyone)
    ]
    first, direction = next(iter(objectives.items()))
    return sorted(kept, key=lambda candidate: candidate.values[first], reverse=direction == "maximize")


def hypervolume(
    everyone: Sequence[Mapping[str, float]], objectives: Mapping[str, Direction], reference: Mapping[str, float]
) -> float:
    """The volume that `everyone` dominates, up to the `reference` point; 0 when nobody reaches that."""
    from optuna._hypervolume import compute_hypervolume  # Optuna draws its history with it and exports no other

    signs = {name: -1.0 if direction == "maximize" else 1.0 for name, direction in objectives.items()}
    limit = np.array([signs[name] * reference[name] for name in objectives])
    points = np.array([[signs[name] * values[name] for name in objectives] for values in everyone])
    within = points[(points <= limit).all(axis=1)] if len(points) else points
    return float(compute_hypervolume(within, limit)) if len(within) else 0.0


@dataclass(frozen=True)
class Results:
    """All that a report reads of one search.

    objectives: name (`cache_bytes`, `capacity.bits`, ...) -> direction, in the order of the space file.
    reference: the hypervolume's reference point: zero bits, the bytes of the costliest admissible candidate.
    context: tokens at which cache bytes are counted.
    struck: the candidates that may not stand on the front; `candidates` are the others.
    ended_early: why the search stopped before it had trained all its trials; empty when it did.
    seed: of the sampler, without which the search cannot be resumed.
    """

    name: str
    directory: str
    study_path: str
    space: Mapping[str, Any]
    objectives: Mapping[str, Direction]
    reference: Mapping[str, float]
    context: int
    trials: tuple[Trial, ...]
    candidates: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    struck: tuple[Candidate, ...] = ()
    ended_early: str = ""
    seed: int = 0

    @property
    def failures(self) -> dict[str, int]:
        """Reason -> how many trials failed with it, the most frequent first."""
        return dict(Counter(trial.reason for trial in self.trials if trial.state == "failed").most_common())
