"""The program of a worker process: it serves jobs, each in a process of its own (`fork_server`).

A kind of job is a function in `HANDLERS`: it gets the job, the device and `say` (`protocol`), returns what belongs to
its answer `done`, and raises to fail. It says something now and then, `alive` if there is nothing else: a job that is
silent for long is taken to hang. Whatever a block raises, SystemExit included, fails the job and nothing else.
"""

import argparse
import contextlib
import importlib
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from doge_lab import config, digest, registry, tasks
from doge_lab.errors import one_line
from doge_lab.identity import TRAINING
from doge_lab.objective import evaluate
from doge_lab.run import BreaksContract
from doge_lab.search.auditor import audit
from doge_lab.search.fork_server import serve
from doge_lab.search.protocol import ALIVE, DONE, EXAMINED, FAILED, REPORT, Job, Say
from doge_lab.search.screening import weigh
from doge_lab.search.vetting import Suspect, examine, verdict
from doge_lab.train import Diverged, StepReport

PRELOADED = ("doge_lab.testing", "torch._dynamo", *(f"{tasks.__name__}.{name}" for name in tasks.names()))
"""What nearly every job imports, imported once; never a block."""
BEAT = 0.5
"""Seconds between two words that a job is alive, at least."""
TRACEBACK = 100_000
"""Characters of a traceback that are kept."""

Handler = Callable[[Job, str, Say], dict[str, Any]]


class _Refused(Exception):
    """The job fails for a reason that is told as it is."""


def main(words: Sequence[str]) -> NoReturn:
    """Serve until standard input ends: jobs come through it, answers go to standard output."""
    parser = argparse.ArgumentParser(description="Trains the candidates of a search; started by doge-lab search.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--allow-import", action="append", default=[])
    options = parser.parse_args(words)
    answers = os.dup(1)
    os.dup2(2, 1)
    for package in options.allow_import:
        registry.allow_import(package)
    torch.set_num_threads(1)  # beside a GPU as well: the contract's checks run on the processor, in every worker
    for name in PRELOADED:
        importlib.import_module(name)
    # as it was imported: a later edit of a file is not what these processes run
    digest.as_loaded((TRAINING, *(name for name in PRELOADED if name.startswith("doge_lab."))))
    random.seed(0)  # as torch's, so that a job draws the same in whichever worker it is
    numpy.random.seed(0)
    with contextlib.suppress(BrokenPipeError):  # the coordinator is gone: finished runs are on disk
        serve(partial(do, options.device), jobs=0, answers=answers)
    os._exit(0)  # at once: to take torch apart costs a second


def do(device: str, job: Job, say: Say) -> tuple[str, dict[str, Any]]:
    """Do a job; its last event and what belongs to it."""
    try:
        return DONE, HANDLERS[job["kind"]](job, device, say)
    except Diverged as error:
        return FAILED, {"reason": str(error), "diverged": True}
    except BreaksContract as error:
        return FAILED, {"reason": str(error), "contract": True}
    except _Refused as error:
        return FAILED, {"reason": str(error)}
    except BaseException as error:
        _keep_traceback(job)
        return FAILED, {"reason": one_line(error)}


def _check(job: Job, device: str, say: Say) -> dict[str, Any]:
    return {"results": examine(Suspect(**job["suspect"]), on_result=lambda result: say(ALIVE))}


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
    """Examine the job's suspects. Raises `_Refused` with the first failed check."""
    for written in job.get("suspects", ()):
        suspect = Suspect(**written)
        results = examine(suspect, on_result=lambda result: say(ALIVE))
        say(EXAMINED, suspect=written, results=results)
        if said := verdict(suspect, results, allow_faults=job["allow_faults"]):
            raise _Refused(said)


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


def _keep_traceback(job: Job) -> None:
    """Leave the traceback beside the runs. A full disk, or memory, may be the very error: then there is none."""
    with contextlib.suppress(Exception):
        if "folder" in job:
            folder = Path(job["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            text = traceback.format_exc()[-TRACEBACK:]
            (folder / f"error-{job['job']}.txt").write_text(text, encoding="utf-8", errors="replace")


HANDLERS: Mapping[str, Handler] = {"screen": _screen, "train": _train, "check": _check, "audit": _audit}
"""Kind of job -> who does it."""
