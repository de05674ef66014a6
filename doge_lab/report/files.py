"""The results as files that other programs read: `front.json`, `trials.csv` and one run file per front model."""

import csv
import io
import json
from typing import Any

import yaml

from doge_lab.report.labels import model_label, plain
from doge_lab.report.pairs import dominators, pairs
from doge_lab.search.front import Candidate, Results

_COSTS = ("params", "embedding_params", "active_params", "flops_per_token", "cache_bytes", "context", "cache_dtype")


def run_file(candidate: Candidate) -> str:
    """Where a front model's run file lies, relative to the report."""
    return f"front/trial-{candidate.number}.yaml"


def rebuild_command(candidate: Candidate) -> str:
    """The command that trains a front model again, given in the report's folder."""
    return f"doge-lab train {run_file(candidate)} --out rebuilt/trial-{candidate.number}"


def run_yaml(candidate: Candidate) -> str:
    """The resolved run, as `doge-lab train` reads it, with the seed of the first confirmation where there is one.

    `doge-lab train` scores on test data, as the confirmation did: it gives the same figures again.
    """
    seed = candidate.confirmed_seeds[:1] or (candidate.trials[0].seed,)
    config = {**plain(candidate.trials[0].config), "seed": seed[0]}
    body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    return f"# {rebuild_command(candidate)}\n{body}"


def space_yaml(results: Results) -> str:
    """The space that was searched, with all that was overridden on the command line."""
    return yaml.safe_dump(plain(results.space), sort_keys=False, allow_unicode=True, width=120)


def front_json(results: Results) -> str:
    """The front as a list, in the order of the first objective; numbers that are not finite become null."""
    told = [pair.dump() for pair in pairs(results)]
    entries = [
        {
            **_entry(candidate, results),
            "pairs": [pair for pair in told if pair["first"] == candidate.number],
            "dominated_on_test_by": [
                {"trial": other.number, "probability": chance} for other, chance in dominators(candidate, results)
            ],
        }
        for candidate in results.front
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def struck_json(results: Results) -> str:
    """The models that would stand on the front by their values and may not, with the promise that each breaks."""
    entries = [
        {**_entry(candidate, results), "reason": candidate.struck, "run_file": None, "rebuild": None}
        for candidate in results.struck
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _entry(candidate: Candidate, results: Results) -> dict[str, Any]:
    first = candidate.trials[0]
    entry = {
        "trial": candidate.number,
        "label": model_label(first.config),
        "candidate": first.candidate,
        "values": {name: candidate.values[name] for name in results.objectives},
        "seeds": len(candidate.trials),
        "all_values": [{"trial": trial.number, "seed": trial.seed, **trial.values} for trial in candidate.trials],
        "confirmed": [
            {"seed": seed, **values}
            for seed, values in zip(candidate.confirmed_seeds, candidate.confirmed, strict=True)
        ],
        "cost": first.cost,
        "audits": [{"seed": int(seed), **found} for seed, found in candidate.audits.items()],
        "metrics": [trial.metrics for trial in candidate.trials],
        "config": first.config,
        "run_file": run_file(candidate),
        "rebuild": rebuild_command(candidate),
    }
    return {name: plain(value) for name, value in entry.items()}


def trials_csv(results: Results) -> str:
    """One row per trial: what it was, its objectives, what was drawn (`param.*`) and what it costs (`cost.*`)."""
    drawn = list(dict.fromkeys(name for trial in results.trials for name in trial.params))
    header = ["number", "state", "candidate", "seed", "seconds", "reason", *results.objectives]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, *(f"param.{name}" for name in drawn), *(f"cost.{name}" for name in _COSTS)])
    for trial in results.trials:
        row = [trial.number, trial.state, trial.candidate, trial.seed, trial.seconds, trial.reason]
        row += [trial.values.get(name, "") for name in results.objectives]
        row += [_cell(trial.params.get(name, "")) for name in drawn]
        writer.writerow([*row, *(trial.cost.get(name, "") for name in _COSTS)])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(plain(value)) if isinstance(value, dict | list | tuple) else value
