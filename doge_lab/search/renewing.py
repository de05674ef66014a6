"""Trials that other code computed: which they are, and how a resumed search trains them again.

Their values are no longer what this code would measure, so they may stand on no front beside fresh ones.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from doge_lab import config
from doge_lab.errors import UserError
from doge_lab.identity import sources


def outdated(trials: Iterable[tuple[int, Mapping[str, Any], Mapping[str, str]]]) -> list[int]:
    """Numbers of the trials whose sources (`identity.sources`) are not those of this code.

    Each trial is given as its number, its resolved configuration and its sources. Where a block cannot be read here,
    nothing is known, and nothing is said.
    """
    known: dict[str, dict[str, str] | None] = {}
    found = []
    for number, run, computed_by in trials:
        key = json.dumps({name: run.get(name) for name in ("model", "tasks", "train")}, sort_keys=True)
        if key not in known:
            known[key] = _now(run)
        if (now := known[key]) is not None and now != computed_by:
            found.append(number)
    return found


def _now(run: Mapping[str, Any]) -> dict[str, str] | None:
    try:
        read = config.parse(run)
    except UserError:
        return None
    return sources(read)


def begun_again(trial: FrozenTrial) -> FrozenTrial:
    """The trial as it was when it was drawn: a search that takes it up screens and trains it under its number."""
    again = copy.deepcopy(trial)
    again.state, again.values, again.datetime_complete = TrialState.RUNNING, None, None
    again.user_attrs = {}
    return again
