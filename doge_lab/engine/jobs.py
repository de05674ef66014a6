"""What a worker can do: a function for each kind of job.

It gets the job, the device and `say` (`protocol`), returns what belongs to its answer `done`, and raises to fail. It
says something now and then, `alive` if there is nothing else: a job that is silent for long is taken to hang.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from doge_lab import config
from doge_lab.engine.auditor import audit
from doge_lab.engine.checks import CheckCase, examine, verdict
from doge_lab.engine.protocol import ALIVE, EXAMINED, REPORT, Job, Say
from doge_lab.errors import UserError, one_line
from doge_lab.objective import evaluate
from doge_lab.train import StepReport

BEAT = 0.5
"""Seconds between two words that a job is alive, at least."""

Handler = Callable[[Job, str, Say], dict[str, Any]]


class Refused(Exception):
    """The job fails for a reason that is told as it is."""


def _check(job: Job, device: str, say: Say) -> dict[str, Any]:
    return {"results": examine(CheckCase(**job["case"]), on_result=lambda result: say(ALIVE))}


def _screen(job: Job, device: str, say: Say) -> dict[str, Any]:
    return weigh(job["run"])


def _train(job: Job, device: str, say: Say) -> dict[str, Any]:
    def report(point: StepReport, task: str) -> None:
        say(REPORT, task=task, step=point.step, steps=point.steps)

    _examine_first(job, say)
    run = config.parse(job["run"])
    reports = {task.label: partial(report, task=task.label) for task in run.tasks}
    with _heartbeat(say):
        measured = evaluate(run, Path(job["folder"]), scored_on=job["scored_on"], device=device, on_report=reports)
    return {name: fact for name, fact in asdict(measured).items() if name != "cost"}


def _audit(job: Job, device: str, say: Say) -> dict[str, Any]:
    """A second look at a trained candidate, from its saved weights."""
    run, allowed = config.parse(job["run"]), job["allow_faults"]

    def alive(*_: object) -> None:
        say(ALIVE)

    return {"found": audit(run, Path(job["folder"]), device=device, allow_faults=allowed, alive=alive)}


def _examine_first(job: Job, say: Say) -> None:
    """Examine the job's cases. Raises `Refused` with the first failed check."""
    for written in job.get("cases", ()):
        case = CheckCase(**written)
        results = examine(case, on_result=lambda result: say(ALIVE))
        say(EXAMINED, case=written, results=results)
        if said := verdict(case, results, allow_faults=job["allow_faults"]):
            raise Refused(said)


@contextlib.contextmanager
def _heartbeat(say: Say) -> Iterator[None]:
    """Say at training steps that the job is alive: between two reports of a large model there may be an hour."""
    said = time.monotonic()

    def beat(*_: object) -> None:
        nonlocal said
        if time.monotonic() - said > BEAT:
            said = time.monotonic()
            say(ALIVE)

    hook = register_optimizer_step_post_hook(beat)
    try:
        yield
    finally:
        hook.remove()


def weigh(run: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved `run` and its `cost`, or why it is `refused`: it cannot be built, or not be matched."""
    try:
        resolved = config.parse(run).resolved()
        return {"run": resolved.dump(), "cost": resolved.cost().dump()}
    except UserError as error:
        return {"refused": str(error)}
    except (Exception, SystemExit) as error:  # a block may raise anything when it is built
        return {"refused": f"cannot be built: {one_line(error)}"}


HANDLERS: Mapping[str, Handler] = {"screen": _screen, "train": _train, "check": _check, "audit": _audit}
"""Kind of job -> who does it."""
