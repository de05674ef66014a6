"""Which models of a front can be told apart: neighbours compared seed by seed on fresh test data.

    knowledge    trial 3 over trial 7    412 ± 630    in this order with probability 0.91    about 9 seeds would tell

An objective that is counted needs no seed. Of those that are trained and scored, each orders the front by its means on
test data, and every model is compared with the next.
"""

import shlex
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from doge_lab.report.labels import chance, is_exact, objective_title
from doge_lab.search.front import Candidate, Results, dominates
from doge_lab.stats import Comparison, compare, differences, dominance

PROBABLE = 0.5
"""From this probability on, a model is marked as dominated."""
SEEDS = 3
"""What to confirm with where one seed says nothing."""


@dataclass(frozen=True)
class Pair:
    """Two neighbours in the order of one measured objective; `compared` holds by how much the first is better."""

    objective: str
    first: Candidate
    second: Candidate
    compared: Comparison

    def dump(self) -> dict[str, Any]:
        difference = self.compared.difference
        return {
            "objective": self.objective,
            "first": self.first.number,
            "second": self.second.number,
            **self.compared._asdict(),
            "difference": difference._asdict() if difference else None,
        }


def pairs(results: Results) -> list[Pair]:
    """Every two neighbours, best first, in the order of each measured objective."""
    found = []
    for name in _measured(results):
        scores = {candidate.number: _scores(candidate, name, results) for candidate in results.front}
        known = [candidate for candidate in results.front if scores[candidate.number]]
        order = sorted(known, key=lambda candidate: -fmean(scores[candidate.number].values()))
        found += [Pair(name, a, b, compare(scores[a.number], scores[b.number])) for a, b in pairwise(order)]
    return found


def dominators(candidate: Candidate, results: Results) -> list[tuple[Candidate, float | None]]:
    """The models of the front that probably dominate this one on test data, the most probable first.

    With one seed there is no probability, and those are named whose values on test data are better.
    """
    chances = [(other, _dominance(other, candidate, results)) for other in results.front]
    found = [
        (other, likely)
        for other, likely in chances
        if (_better_on_one_seed(other, candidate, results) if likely is None else likely >= PROBABLE)
    ]
    return sorted(found, key=lambda item: -(item[1] or 0.0))


def _dominance(a: Candidate, b: Candidate, results: Results) -> float | None:
    exact = [_sign(name, results) * (a.values[name] - b.values[name]) for name in results.objectives if is_exact(name)]
    measured = [differences(_scores(a, name, results), _scores(b, name, results)) for name in _measured(results)]
    return dominance(exact, measured)


def _better_on_one_seed(a: Candidate, b: Candidate, results: Results) -> bool:
    better, worse = dict(a.values), dict(b.values)
    for name in _measured(results):
        shared = a.fresh(name).keys() & b.fresh(name).keys()
        if not shared:
            return False
        better[name], worse[name] = (fmean(model.fresh(name)[seed] for seed in shared) for model in (a, b))
    return dominates(better, worse, results.objectives)


def _measured(results: Results) -> list[str]:
    return [name for name in results.objectives if not is_exact(name)]


def _sign(name: str, results: Results) -> int:
    return 1 if results.objectives[name] == "maximize" else -1


def _scores(candidate: Candidate, name: str, results: Results) -> dict[int, float]:
    """Values on fresh test data by seed, signed so that more is better."""
    return {seed: _sign(name, results) * value for seed, value in candidate.fresh(name).items()}


def unmeasured(results: Results) -> list[Candidate]:
    """Models of the front without a value on test data."""
    return [candidate for candidate in results.front if _measured(results) and not candidate.confirmed]


def undecided(results: Results, found: list[Pair]) -> str:
    """The sentence for a front on which no two models can be compared; empty where some can, or there is one model."""
    if len(results.front) < 2 or not _measured(results) or any(pair.compared.probability is not None for pair in found):
        return ""
    if len(unmeasured(results)) == len(results.front):
        return "Nothing was repeated on test data: no two models can be told apart, and neighbours may swap places."
    return "One seed for each model: no two of them can be told apart, and neighbours may swap places."


def more_seeds(results: Results, folder: str, count: str = str(SEEDS)) -> str:
    """The command that confirms the front of a finished search with `count` seeds, and trains no other model again."""
    seed = f" --seed {results.seed}" if results.seed else ""
    space, where = shlex.quote(f"{folder}/space.yaml"), shlex.quote(folder)
    return f"doge-lab search {space} --out {where} --set search.confirm_seeds={count} --resume{seed}"


def doubt(where: str, first: str, second: str, found: Comparison) -> str:
    """The line for two neighbours whose order may be chance."""
    said = f"{where}: {first} and {second} cannot be told apart"
    if found.probability is None or _always_equal(found):
        return f"{said}; {way_to_tell(found)}"
    return f"{said}, the first better with probability {chance(found.probability)}; {way_to_tell(found)}"


def way_to_tell(found: Comparison) -> str:
    """What would tell two apart."""
    if found.probability is None:
        return "one seed tells nothing"
    if _always_equal(found):
        return "they are equal on every seed"
    seeds = f"about {found.seeds_needed} seeds" if found.seeds_needed else "no affordable number of seeds"
    return f"{seeds} would tell"


def _always_equal(found: Comparison) -> bool:
    return found.difference is not None and found.difference[:2] == (0.0, 0.0)


def dominated(candidate: Candidate, results: Results) -> str:
    """What to say of a model of the front that others probably dominate; empty where none does."""
    others = dominators(candidate, results)
    if not others:
        return ""
    if others[0][1] is None:
        return f"dominated on test data, by one seed, by {', '.join(f'trial {other.number}' for other, _ in others)}"
    said = [f"trial {other.number} (probability {chance(likely)})" for other, likely in others if likely is not None]
    return f"probably dominated on test data by {', '.join(said)}"


def warnings(results: Results) -> list[str]:
    """What a hurried reader of the front must not miss, a line each."""
    found = pairs(results)
    none = undecided(results, found)
    if none:
        lines = [f"{none} {SEEDS} seeds: {more_seeds(results, results.directory)}"]
    else:
        lines = [_doubt(pair) for pair in found if not pair.compared.told_apart]
        lines += [f"trial {candidate.number}: not measured on fresh test data" for candidate in unmeasured(results)]
    said = {candidate.number: dominated(candidate, results) for candidate in results.front}
    lines += [f"trial {each.number} is struck off the front: {each.struck}" for each in results.struck]
    lines += [f"trial {number}: {line}" for number, line in said.items() if line]
    if not none and not all(pair.compared.told_apart for pair in found):
        lines.append(f"More seeds, in place of N: {more_seeds(results, results.directory, 'N')}")
    return lines


def _doubt(pair: Pair) -> str:
    return doubt(
        objective_title(pair.objective), f"trial {pair.first.number}", f"trial {pair.second.number}", pair.compared
    )
