"""What a search measures: a candidate's cost, and its score on every task, as named values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from doge_lab.config import RunConfig
from doge_lab.errors import UserError, did_you_mean, shortened
from doge_lab.identity import place, sources
from doge_lab.model import CausalLM
from doge_lab.run import BreaksContract, OnReport, execute
from doge_lab.tasks import ScoredOn, Task, TaskData
from doge_lab.testing.assembled import Assembled
from doge_lab.testing.runner import CheckResult
from doge_lab.testing.trained import check_model

COST_NAMES = ("cache_bytes", "params", "active_params", "flops_per_token")
METRIC_NAMES = ("bits", "accuracy", "bits_per_param", "bits_per_active_param")


@dataclass(frozen=True)
class Measured:
    """metrics: task label -> metrics. cost: `Cost.dump()`. Of training and scoring: wall seconds, and CPU seconds.

    sources: what computed it (`identity.sources`). replaced: why earlier results, which
    other code computed, were trained again just now.
    """

    metrics: dict[str, dict[str, Any]]
    cost: dict[str, Any]
    seconds: float
    cpu_seconds: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()

    def value(self, name: str) -> float:
        """`cache_bytes`, or `capacity.bits`."""
        task, _, metric = name.rpartition(".")
        return float(self.metrics[task][metric] if task else self.cost[name])


def check_names(names: Iterable[str], tasks: Iterable[Task]) -> None:
    """Raise `UserError` for an objective that nothing will measure."""
    known = [*COST_NAMES, *(f"{task.label}.{metric}" for task in tasks for metric in METRIC_NAMES)]
    for name in names:
        if name not in known:
            raise UserError(f"nothing measures {shortened(name)}{did_you_mean(name, known)}")


def evaluate(
    run: RunConfig,
    folder: Path,
    *,
    scored_on: ScoredOn,
    device: str = "cpu",
    on_report: Mapping[str, OnReport] | None = None,
) -> Measured:
    """Train the resolved `run` on each of its tasks, below `folder`; what is finished there is not done again.

    Raises `Diverged`, and `BreaksContract` for a trained model that does not keep what its blocks promise.
    """
    metrics, seconds, cpu_seconds = {}, 0.0, 0.0
    replaced: list[str] = []
    for task in run.tasks:
        report = (on_report or {}).get(task.label, lambda point: None)
        end = execute(
            run,
            task,
            run_folder(folder, run, task, scored_on),
            scored_on=scored_on,
            device=device,
            on_report=report,
            accept=partial(_accept, run, task),
        )
        metrics[task.label] = end["metrics"]
        seconds += end["wall_seconds"]
        cpu_seconds += end["cpu_seconds"]
        replaced += [end["replaces"]] if "replaces" in end else []
    return Measured(metrics, run.cost().dump(), seconds, cpu_seconds, sources(run), tuple(dict.fromkeys(replaced)))


def _accept(run: RunConfig, task: Task, model: CausalLM, data: TaskData) -> None:
    """The cheap part of what a trained model is asked: on a batch of its task, beside a model with its weights."""
    reloaded = CausalLM.build(run.model, seed=run.seed + 1, device=model.embed.weight.device)
    reloaded.load_state_dict(model.state_dict())
    require_sound(check_model(as_trained(run, task, model, reloaded.eval(), data), thorough=False))


def as_trained(run: RunConfig, task: Task, model: CausalLM, reloaded: CausalLM, data: TaskData) -> Assembled:
    """The model with the batch that training would have shown next."""
    config = run.train_config(task)
    batch = data.batch(config.steps, config.batch_size)
    return Assembled(model, reloaded, batch.inputs.to(model.embed.weight.device), seed=run.seed)


def require_sound(results: Iterable[CheckResult]) -> None:
    """Raise `BreaksContract` for the first promise that is not kept."""
    for result in results:
        if not result.passed:
            raise BreaksContract(f"the trained model fails {result.name}: {result.message}")


def run_folder(folder: Path, run: RunConfig, task: Task, scored_on: ScoredOn) -> Path:
    """Where a run of a search is kept: named by what decides its result."""
    steps = run.train_config(task).steps
    return folder / f"{place(run, task)}-{task.label}-{scored_on}-seed{run.seed}-steps{steps}"
