"""The program of a worker process: it serves jobs, each in a process of its own (`fork_server`).

What it can do is in `jobs`. Whatever a block raises, SystemExit included, fails the job and nothing else.
"""

import argparse
import contextlib
import importlib
import os
import random
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch

from doge_lab import digest, registry, tasks
from doge_lab.engine.fork_server import serve
from doge_lab.engine.jobs import HANDLERS, Refused
from doge_lab.engine.protocol import DONE, FAILED, Job, Say
from doge_lab.errors import one_line
from doge_lab.identity import TRAINING
from doge_lab.run import BreaksContract
from doge_lab.train import Diverged

PRELOADED = ("doge_lab.testing", "torch._dynamo", *(f"{tasks.__name__}.{name}" for name in tasks.names()))
"""What nearly every job imports, imported once; never a block."""
TRACEBACK = 100_000
"""Characters of a traceback that are kept."""


def main(words: Sequence[str]) -> NoReturn:
    """Serve until standard input ends: jobs come through it, answers go to standard output."""
    parser = argparse.ArgumentParser(description="Does the jobs of a pool, which starts it.")
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
    except Refused as error:
        return FAILED, {"reason": str(error)}
    except BaseException as error:
        _keep_traceback(job)
        return FAILED, {"reason": one_line(error)}


def _keep_traceback(job: Job) -> None:
    """Leave the traceback beside the runs. A full disk, or memory, may be the very error: then there is none."""
    with contextlib.suppress(Exception):
        if "folder" in job:
            folder = Path(job["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            text = traceback.format_exc()[-TRACEBACK:]
            (folder / f"error-{job['job']}.txt").write_text(text, encoding="utf-8", errors="replace")
