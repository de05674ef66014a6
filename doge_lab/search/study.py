"""The study on disk: one SQLite file that one process writes, and everything a report needs read back from it."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from doge_lab.errors import UserError
from doge_lab.search.config import SearchConfig, Space, parse_space, read_space
from doge_lab.search.front import Results, State, Trial, candidates, front

STUDY = "study.db"
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "rejected",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}

Confirmed = dict[str, dict[str, dict[str, float]]]
"""Fingerprint -> seed -> objective -> value on fresh test data."""


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
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        raise UserError(
            f"cannot be written ({reason}); what is finished is kept: make room and say --resume", str(directory)
        ) from None


def open_study(directory: Path, space: Space, *, seed: int) -> tuple[Study, BaseStorage]:
    """Create the study of a new search, or continue one. Raises `UserError` when the folder is another space's."""
    path = directory / STUDY
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not path.exists():
        _create(path, space, seed=seed)
    storage = RDBStorage(_url(path))
    (name,) = optuna.get_all_study_names(storage)
    if name != space.name:
        raise UserError(f"{directory} holds the search {name!r}, not {space.name!r}; choose another --out")
    study = optuna.load_study(study_name=name, storage=storage)
    # A resumed sampler must not repeat the draws of the first part.
    study.sampler = build_sampler(space.search, seed + len(study.trials))
    before = parse_space(study.user_attrs["space"], space.name)
    decisive = {"objectives", "constraints", "allow_faults"}
    if before.run != space.run or before.search.model_dump(include=decisive) != space.search.model_dump(
        include=decisive
    ):
        raise UserError(f"{directory} was searched with another space; choose another --out")
    if study.user_attrs["seed"] != seed:
        raise UserError(f"{directory} was searched with --seed {study.user_attrs['seed']}; resume it with the same")
    study.set_user_attr("space", space.dump())
    return study, storage


def _create(path: Path, space: Space, *, seed: int) -> None:
    """A new study, under its name only when it is whole: who reads a half-made database would make it as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half_made = path.with_name(f".{path.name}.new")
    half_made.unlink(missing_ok=True)
    storage = RDBStorage(_url(half_made))
    study = optuna.create_study(
        storage=storage, study_name=space.name, directions=list(space.search.objectives.values())
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(space.search.objectives))
    for name, value in {"seed": seed, "confirmed": {}, "space": space.dump()}.items():
        study.set_user_attr(name, value)
    storage.remove_session()
    storage.engine.dispose()
    half_made.rename(path)


def build_sampler(search: SearchConfig, seed: int) -> BaseSampler:
    """Optuna's sampler by name, seeded."""
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, search.trials // 3)))
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "qmc":
        return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    if search.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, min(10, search.trials // 3)))


def load_study(directory: Path) -> Study:
    """The study in a search's folder. Raises `UserError` when there is none."""
    path = directory / STUDY
    try:
        if not path.exists():
            raise UserError(f"{directory} holds no {STUDY}; name the --out folder of a search")
        (name,) = optuna.get_all_study_names(_url(path))
        study = optuna.load_study(study_name=name, storage=_url(path))
    except (OSError, ValueError, SQLAlchemyError, StorageInternalError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{path} is no study of doge_lab") from None
    return study


def read_results(directory: Path) -> Results:
    """Everything that a report needs, from the study alone."""
    study = load_study(directory)
    return results_of(study, read_space(study.user_attrs["space"], study.study_name), directory)


def results_of(study: Study, space: Space, directory: Path) -> Results:
    """The results so far of an open study."""
    trials = tuple(_read_trial(trial, space.search) for trial in study.get_trials(deepcopy=False))
    confirmed: Confirmed = study.user_attrs["confirmed"]
    attrs = study.user_attrs
    everyone = candidates(trials, confirmed, attrs.get("unconfirmed", {}), attrs.get("audited", {}))
    sound = [candidate for candidate in everyone if not candidate.struck]
    return Results(
        name=space.name,
        directory=str(directory),
        study_path=str(directory / STUDY),
        space=space.dump(),
        objectives=space.search.objectives,
        reference=_reference(space.search, trials),
        context=next((int(trial.cost["context"]) for trial in trials if trial.cost), 0),
        trials=trials,
        candidates=tuple(sound),
        front=tuple(front(sound, space.search.objectives)),
        struck=tuple(candidate for candidate in everyone if candidate.struck),
        ended_early=study.user_attrs.get("ended_early", ""),
        seed=study.user_attrs["seed"],
    )


def _read_trial(trial: FrozenTrial, search: SearchConfig) -> Trial:
    attrs = trial.user_attrs
    values = dict(zip(search.objectives, trial.values, strict=True)) if trial.state == TrialState.COMPLETE else {}
    return Trial(
        number=trial.number,
        state=_STATES[trial.state],
        candidate=attrs.get("candidate", ""),
        seed=attrs.get("run_seed", 0),
        params=trial.params,
        config=attrs.get("config", {}),
        values=values,
        metrics=attrs.get("metrics", {}),
        cost=attrs.get("cost", {}),
        reason=attrs.get("reason", ""),
        seconds=attrs.get("seconds", 0.0),
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


def _url(path: Path) -> str:
    return f"sqlite:///{path.resolve().as_posix()}"
