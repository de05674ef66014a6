"""Optuna's samplers by name, seeded; what each of them learns from candidates that were rejected untrained.

TPE reads rejected (pruned) trials with their constraints. The Gaussian process of Optuna reads complete trials alone
and would ask the same inadmissible point for ever, so here it is shown the rejected ones as well: as points that
break a constraint, with the mean of what the others measured, so that they say nothing of the objectives.
"""

import logging
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from doge_lab.search.config import SearchConfig

_log = logging.getLogger("doge_lab")


def build_sampler(search: SearchConfig, seed: int) -> BaseSampler:
    """The sampler that `search` names."""
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, search.trials // 3)))
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "qmc":
        return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    if search.sampler == "gp":
        return ConstrainedGPSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, min(10, search.trials // 3)))


class ConstrainedGPSampler(GPSampler):
    """Optuna's Gaussian process, which learns from rejected trials where it may not look."""

    _said = False

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._say_what_is_modelled(study, search_space)
        params = super().sample_relative(_WithRejections(study, search_space), trial, search_space)  # type: ignore[arg-type]
        rejected = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        repeated = any(params == {name: other.params.get(name) for name in params} for other in rejected)
        return {} if repeated else params  # a point known to be inadmissible: draw at random instead

    def _say_what_is_modelled(self, study: Study, search_space: dict[str, BaseDistribution]) -> None:
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        drawn = {name for trial in complete for name in trial.params}
        if self._said or len(complete) < self._n_startup_trials or len(search_space) == len(drawn):
            return
        self._said = True
        _log.warning(
            "sampler gp models %d of %d options, those that every candidate has; the others are drawn at random "
            "(tpe models all)",
            len(search_space),
            len(drawn),
        )


class _WithRejections:
    """A study as the Gaussian process reads it, rejected trials among the complete ones."""

    def __init__(self, study: Study, search_space: dict[str, BaseDistribution]) -> None:
        self._study, self._search_space = study, search_space

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool, states: Sequence[TrialState], use_cache: bool) -> list[FrozenTrial]:
        trials = self._study._get_trials(deepcopy=deepcopy, states=tuple(states), use_cache=use_cache)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        rejected = self._study._get_trials(deepcopy=False, states=(TrialState.PRUNED,), use_cache=use_cache)
        rejected = [trial for trial in rejected if self._search_space.keys() <= trial.params.keys()]
        if not complete or not rejected:
            return trials
        neutral = [fmean(values) for values in zip(*(trial.values for trial in complete), strict=True)]
        others = [trial for trial in trials if trial.state != TrialState.COMPLETE]
        return [
            *(_with_constraint(trial, trial.values, -1.0) for trial in complete),
            *(_with_constraint(trial, neutral, 1.0) for trial in rejected),
            *others,
        ]


def _with_constraint(trial: FrozenTrial, values: Sequence[float], broken: float) -> FrozenTrial:
    return create_trial(
        values=list(values),
        params=trial.params,
        distributions=trial.distributions,
        constraints={"rejected": broken},
    )
