"""The study on disk: one SQLite file that one process writes, and everything a report needs read back from it."""

import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from doge_lab.errors import UserError
from doge_lab.search.config import SearchConfig, Space, parse_space, read_space
from doge_lab.search.extending import difference, moved
from doge_lab.search.front import Direction, Results, State, Trial, candidates, front
from doge_lab.search.renewing import begun_again, outdated
from doge_lab.search.samplers import build_sampler
from doge_lab.search.storage import PATIENCE, STUDY, close_storage, is_locked, open_storage, reading, the_study

_log = logging.getLogger("doge_lab")

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "rejected",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}

Confirmed = dict[str, dict[str, dict[str, float]]]
"""Fingerprint -> seed -> objective -> value on fresh test data."""


LOOKED_AT = ("confirmed", "unconfirmed", "audited")
"""Attributes of a study that hold what was found of a candidate after its trials."""

Unconfirmed = dict[str, dict[str, str]]
"""Fingerprint -> seed -> why its confirmation failed."""


def refuse_mixing(directory: Path, *, resume: bool) -> None:
    """Raise `UserError` when a new search would fall into an old one's folder, or there is none to resume."""
    exists = (directory / STUDY).exists()
    if exists and not resume:
        raise UserError(f"{directory} already holds a search; say --resume to continue it, or choose another --out")
    if resume and not exists:
        raise UserError(f"{directory} holds no search to resume; leave --resume out to start one")


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """A disk that is full, or a study that cannot be written, is one line; what is in the study stays there."""
    try:
        yield
    except (OSError, StorageInternalError, SQLAlchemyError) as error:
        if is_locked(error):
            way = f"is locked by another program for more than {PATIENCE / 60:.0f} minutes; close it and say --resume"
            raise UserError(way, str(directory / STUDY)) from None
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        raise UserError(
            f"cannot be written ({reason}); what is finished is kept: make room and say --resume", str(directory)
        ) from None


def open_study(directory: Path, space: Space, *, seed: int) -> tuple[Study, RDBStorage, Space]:
    """Create the study of a new search, or continue one; returns it with the space in the study's own order.

    The order of the objectives is the study's: values are stored by it. Raises `UserError` when the folder is another
    space's.
    """
    path = directory / STUDY
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not path.exists():
        create_study(path, space, attributes={"seed": seed, "confirmed": {}})
    study, storage = the_study(path)
    before = _checked(study, directory, space, seed=seed)
    space = replace(space, search=space.search.model_copy(update={"objectives": objectives_of(study)}))
    stale = outdated_trials(study)
    if before.run != space.run or stale:
        _rewritten(study, storage, path, space, stale)
        study, storage = the_study(path)
    # A resumed sampler must not repeat the draws of the first part.
    study.sampler = build_sampler(space.search, seed + len(study.trials))
    study.set_user_attr("space", space.dump())
    return study, storage, space


def refuse_other(directory: Path, space: Space, *, seed: int) -> None:
    """Raise `UserError` when the study in `directory`, if there is one, cannot be continued as `space`."""
    if (directory / STUDY).exists():
        study, storage = the_study(directory / STUDY)
        _checked(study, directory, space, seed=seed)
        close_storage(storage)


def _checked(study: Study, directory: Path, space: Space, *, seed: int) -> Space:
    """The study's own space. Raises `UserError` where it is another's, or damaged."""
    if study.study_name != space.name:
        raise UserError(f"{directory} holds the search {study.study_name!r}, not {space.name!r}; choose another --out")
    with reading(directory / STUDY):
        before = parse_space(study.user_attrs["space"], space.name)
        results_of(study, before, directory)  # a damaged trial is found now, not when its turn comes
    if study.user_attrs["seed"] != seed:
        raise UserError(f"{directory} was searched with --seed {study.user_attrs['seed']}; resume it with the same")
    if changed := _decisive_changes(before.search, space.search):
        raise UserError(f"{directory} was searched with other search.{changed}; choose another --out")
    if where := difference(before.run, space.run):
        raise UserError(
            f"{directory} was searched with another space: {where}; a resumed search may add choices and widen "
            "ranges, for anything else choose another --out"
        )
    return before


def _decisive_changes(before: SearchConfig, after: SearchConfig) -> str:
    """The first option that a resumed search may not change and did; empty when there is none."""
    decisive = ("objectives", "constraints", "allow_faults")
    old, new = (search.model_dump(include=set(decisive)) for search in (before, after))
    return next((name for name in decisive if old[name] != new[name]), "")


def create_study(
    path: Path, space: Space, *, attributes: Mapping[str, Any], trials: Iterable[FrozenTrial] = ()
) -> None:
    """A new study of `trials`, under its name only when it is whole: a reader would complete a half-made database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half_made = path.with_name(f".{path.name}.new")
    half_made.unlink(missing_ok=True)
    storage = open_storage(half_made)
    directions = list(space.search.objectives.values())
    study = optuna.create_study(storage=storage, study_name=space.name, directions=directions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(space.search.objectives))
    for name, value in {**attributes, "space": space.dump()}.items():
        study.set_user_attr(name, value)
    study.add_trials(trials)
    close_storage(storage)
    half_made.rename(path)


def outdated_trials(study: Study) -> list[int]:
    """Numbers of the finished trials that other code computed."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    facts = [(trial.number, trial.user_attrs) for trial in complete if "config" in trial.user_attrs]
    return outdated((number, attrs["config"], attrs.get("sources", {})) for number, attrs in facts)


def _rewritten(study: Study, storage: RDBStorage, path: Path, space: Space, stale: Collection[int]) -> None:
    """Move every trial into a wider space, the `stale` ones to be trained again, by a whole new file."""
    old = study.get_trials(deepcopy=False)
    gone = {trial.user_attrs["candidate"] for trial in old if trial.number in stale}
    trials = [begun_again(trial) if trial.number in stale else trial for trial in old]
    wider = path.with_name(f".{path.name}.wider")
    wider.unlink(missing_ok=True)
    attributes = {**study.user_attrs, **{name: _without(study.user_attrs.get(name, {}), gone) for name in LOOKED_AT}}
    create_study(wider, space, attributes=attributes, trials=[moved(trial, space.run) for trial in trials])
    close_storage(storage)
    wider.replace(path)
    if stale:
        _log.warning("%d trials were computed by other code and are trained again", len(stale))


def _without(found: Mapping[str, Any], gone: Collection[str]) -> dict[str, Any]:
    return {candidate: facts for candidate, facts in found.items() if candidate not in gone}


def objectives_of(study: Study) -> dict[str, Direction]:
    """Objective -> direction in the order in which the study stores its values."""
    directions: list[Direction] = [
        "maximize" if direction == StudyDirection.MAXIMIZE else "minimize" for direction in study.directions
    ]
    names = study.metric_names or list(study.user_attrs["space"]["search"]["objectives"])
    return dict(zip(names, directions, strict=True))


def read_results(directory: Path) -> Results:
    """Everything that a report needs, from the study alone."""
    path = directory / STUDY
    study, _ = the_study(path)
    with reading(path):
        space = read_space(study.user_attrs["space"], study.study_name)
        return results_of(study, space, directory)


def results_of(study: Study, space: Space, directory: Path) -> Results:
    """The results so far of an open study."""
    objectives = objectives_of(study)
    trials = tuple(_read_trial(trial, objectives) for trial in study.get_trials(deepcopy=False))
    confirmed: Confirmed = study.user_attrs["confirmed"]
    attrs = study.user_attrs
    everyone = candidates(trials, confirmed, attrs.get("unconfirmed", {}), attrs.get("audited", {}))
    sound = [candidate for candidate in everyone if not candidate.struck]
    return Results(
        name=space.name,
        directory=str(directory),
        study_path=str(directory / STUDY),
        space=space.dump(),
        objectives=objectives,
        reference=_reference(space.search, trials),
        context=next((int(trial.cost["context"]) for trial in trials if trial.cost), 0),
        trials=trials,
        candidates=tuple(sound),
        front=tuple(front(sound, objectives)),
        struck=tuple(candidate for candidate in everyone if candidate.struck),
        ended_early=study.user_attrs.get("ended_early", ""),
        seed=study.user_attrs["seed"],
    )


def _read_trial(trial: FrozenTrial, objectives: Iterable[str]) -> Trial:
    attrs, state, reason = trial.user_attrs, _STATES[trial.state], trial.user_attrs.get("reason", "")
    if state == "complete" and not {"candidate", "cost", "metrics", "config"} <= attrs.keys():
        state, reason = "failed", "added by hand: doge_lab did not measure it"
    return Trial(
        number=trial.number,
        state=state,
        candidate=attrs.get("candidate", ""),
        seed=attrs.get("run_seed", 0),
        params=trial.params,
        config=attrs.get("config", {}),
        values=dict(zip(objectives, trial.values, strict=True)) if state == "complete" else {},
        metrics=attrs.get("metrics", {}),
        cost=attrs.get("cost", {}),
        reason=reason,
        seconds=attrs.get("seconds", 0.0),
        sources=attrs.get("sources", {}),
    )


def _reference(search: SearchConfig, trials: tuple[Trial, ...]) -> dict[str, float]:
    """The hypervolume's reference: zero for scores, the costliest admissible candidate for costs."""
    return {
        name: 0.0 if direction == "maximize" else _costliest(name, search, trials)
        for name, direction in search.objectives.items()
    }


def _costliest(name: str, search: SearchConfig, trials: tuple[Trial, ...]) -> float:
    bounds = search.constraints.get(name)  # type: ignore[call-overload]
    if bounds is not None and bounds.max is not None:
        return float(bounds.max)
    return max((_known(trial, name) for trial in trials if trial.state in ("complete", "failed")), default=0.0)


def _known(trial: Trial, name: str) -> float:
    values: Mapping[str, float] = {**trial.cost, **trial.values}
    return float(values.get(name, 0.0))
