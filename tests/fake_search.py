"""A finished search made by hand: trials, their SQLite study, and the results that a report reads."""

import math

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from doge_lab import config
from doge_lab.search.front import Results, Trial, candidates, front

THREE = {"cache_bytes": "minimize", "capacity.bits": "maximize", "recall.bits": "maximize"}
CHOICES = {"kv": CategoricalDistribution([0, 1, 2]), "width": IntDistribution(20, 60)}


def run_config(kv, width, seed=0, name="demo"):
    sequence = {"type": "attention", "n_heads": 2, "n_kv_heads": kv} if kv else "none"
    layer = {"repeat": 2, "sequence": sequence, "state": {"type": "mlp", "d_hidden": width}}
    written = {"name": name, "model": {"d_model": 16, "layers": [layer]}, "tasks": ["capacity", "recall"], "seed": seed}
    return config.parse(written).resolved()


def complete(number, kv, width, seed=0, **changes):
    run = run_config(kv, width, seed)
    cost = run.cost(32).dump()
    bits, recall = 1.9 * cost["params"] + 10 * math.sin(number) + seed, 6.0 * kv + 0.01 * width + 0.1 * seed
    metrics = {
        "capacity": {"bits": bits, "accuracy": 0.5, "bits_per_param": bits / cost["params"], "saturation": 0.95},
        "recall": {"bits": recall, "accuracy": 0.25, "guess_bits": 12.0, "exposures": 1.0},
    }
    metrics["capacity"]["saturated"] = True
    values = {"cache_bytes": float(cost["cache_bytes"]), "capacity.bits": bits, "recall.bits": recall}
    values["params"] = float(cost["params"])
    made = {"candidate": f"{kv}-{width}", "seed": seed, "params": {"kv": kv, "width": width}, "config": run.dump()}
    return Trial(number, "complete", **{**made, "values": values, "metrics": metrics, "cost": cost, "seconds": 10.0})


def some_trials():
    trials = [complete(i, kv=i % 3, width=30 + 2 * (i // 3)) for i in range(12)]
    trials.append(Trial(12, "rejected", params={"kv": 2, "width": 60}, reason="params is 9,999, over\nthe budget"))
    trials.append(Trial(13, "failed", params={"kv": 2, "width": 59}, reason="the loss is nan at step 3"))
    return trials


def make_study(path, trials, objectives, name):
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    study = optuna.create_study(storage=storage, study_name=name, directions=list(objectives.values()))
    for attribute, value in {"space": {"search": {"objectives": objectives}}, "seed": 0, "confirmed": {}}.items():
        study.set_user_attr(attribute, value)
    states = {"complete": TrialState.COMPLETE, "rejected": TrialState.PRUNED, "failed": TrialState.FAIL}
    for trial in trials:
        values = [trial.values[name] for name in objectives] if trial.state == "complete" else None
        chosen = {name: CHOICES.get(name, CategoricalDistribution(("a", "b"))) for name in trial.params}
        state = states[trial.state]
        study.add_trial(create_trial(state=state, values=values, params=dict(trial.params), distributions=chosen))
    storage.remove_session()
    storage.engine.dispose()


def make_results(directory, trials, objectives=THREE, confirmed=None, name="demo", *, study=True):
    """Results and, unless told otherwise, their study, as a search leaves them."""
    directory.mkdir(parents=True, exist_ok=True)
    if study:
        make_study(directory / "study.db", trials, objectives, name)
    everyone = candidates(trials, confirmed or {})
    limits = {"cache_bytes": 1e6, "params": 1e6}
    return Results(
        name=name,
        directory=str(directory),
        study_path=str(directory / "study.db"),
        space={"model": {"d_model": 16}},
        objectives=objectives,
        reference={name: limits.get(name, 0.0) for name in objectives},
        context=32,
        trials=tuple(trials),
        candidates=tuple(everyone),
        front=tuple(front(everyone, objectives)),
    )
