"""A long-lived worker process: reads jobs from standard input, a line of JSON each, and answers the same way.

    job     {"job": 7, "run": {...}, "folder": "...", "scored_on": "validation"}      or {"job": -1, "suspect": {...}}
            {"job": -2, "audit": true, "run": {...}, "folder": "...", "allow_faults": false}
    answer  {"event": "report", "job": 7, "task": "recall", "step": 120, "steps": 300}
            {"event": "done", "job": 7, "metrics": {...}, "seconds": 8.1, "cpu_seconds": 8.0}
            {"event": "done", "job": -1, "results": [...]}                             of the checks
            {"event": "done", "job": -2, "found": {...}}                               of an audit
            {"event": "failed", "job": 7, "reason": "..."}
            {"event": "examined", "job": 7, "suspect": {...}, "results": [...]}

A job that trains may name `suspects`: they are examined first, and one that fails fails the job.

Text only: nothing is pickled. The worker ends when its input does, so it never outlives the coordinator. What a
block prints goes to standard error.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from doge_lab import config, registry
from doge_lab.objective import evaluate
from doge_lab.run import BreaksContract
from doge_lab.search.auditor import audit
from doge_lab.search.vetting import Suspect, examine, verdict
from doge_lab.train import Diverged, StepReport


def main() -> None:
    """Entry point of `python -m doge_lab.search.worker`."""
    parser = argparse.ArgumentParser(description="Trains the candidates of a search; started by doge-lab search.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--allow-import", action="append", default=[])
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the coordinator's to handle
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for package in options.allow_import:
        registry.allow_import(package)
    if options.device == "cpu":
        torch.set_num_threads(1)
    _answer(answers, event="ready")
    for line in sys.stdin:
        _work(json.loads(line), options.device, answers)


def _work(job: Mapping[str, Any], device: str, answers: TextIO) -> None:
    if "audit" in job:
        _audit(job, device, answers)
        return
    if "suspect" not in job:
        _train(job, device, answers)
        return
    try:
        _answer(answers, event="done", job=job["job"], results=examine(Suspect(**job["suspect"])))
    except Exception as error:
        _answer(answers, event="failed", job=job["job"], reason=_one_line(error))


def _audit(job: Mapping[str, Any], device: str, answers: TextIO) -> None:
    """A second look at a trained candidate; it raises nothing."""
    run = config.parse(job["run"])
    found = audit(run, Path(job["folder"]), device=device, allow_faults=job["allow_faults"])
    _answer(answers, event="done", job=job["job"], found=found)


def _train(job: Mapping[str, Any], device: str, answers: TextIO) -> None:
    number = job["job"]
    folder = Path(job["folder"])

    def report(point: StepReport, task: str) -> None:
        _answer(answers, event="report", job=number, task=task, step=point.step, steps=point.steps)

    try:
        if said := _examine_first(job, answers):
            _answer(answers, event="failed", job=number, reason=said)
            return
        run = config.parse(job["run"])
        reports = {task.label: partial(report, task=task.label) for task in run.tasks}
        measured = evaluate(run, folder, scored_on=job["scored_on"], device=device, on_report=reports)
    except (Diverged, BreaksContract) as error:
        kind = {"diverged": isinstance(error, Diverged), "contract": isinstance(error, BreaksContract)}
        _answer(answers, event="failed", job=number, reason=str(error), **kind)
    except Exception as error:  # a block may raise anything: it fails its trial, never the search
        with contextlib.suppress(OSError):  # a full disk may be the very error
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"error-{number}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        _answer(answers, event="failed", job=number, reason=_one_line(error))
    else:
        spent = {"seconds": measured.seconds, "cpu_seconds": measured.cpu_seconds}
        _answer(answers, event="done", job=number, metrics=measured.metrics, **spent)


def _examine_first(job: Mapping[str, Any], answers: TextIO) -> str:
    """The first failed check of the job's suspects; empty when all may be trained."""
    for written in job.get("suspects", ()):
        suspect = Suspect(**written)
        results = examine(suspect)
        _answer(answers, event="examined", job=job["job"], suspect=written, results=results)
        if said := verdict(suspect, results, allow_faults=job["allow_faults"]):
            return said
    return ""


def _one_line(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _answer(answers: TextIO, **content: Any) -> None:
    try:
        answers.write(json.dumps(content) + "\n")
        answers.flush()
    except BrokenPipeError:
        os._exit(0)  # the coordinator is gone: finished runs are on disk, and nobody is left to tell


if __name__ == "__main__":
    main()
