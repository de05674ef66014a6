"""What the commands share that train an experiment: its options, a bar with the time left, and what an end leaves."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_lab import signals
from doge_lab.cli.options import add_json, add_overrides, consent, devices, facts_alone, in_range
from doge_lab.errors import UserError

if TYPE_CHECKING:
    from doge_lab.experiment.candidates import Candidates
    from doge_lab.experiment.config import Experiment
    from doge_lab.experiment.runner import Runner

CONTINUES = "what is finished is kept; the same command continues"


def add_source(parser: argparse.ArgumentParser, most: int) -> None:
    """What is compared: an experiment, or models of a search's front."""
    parser.add_argument("source", type=Path, metavar="FILE.yaml|FOLDER", help="an experiment, or a search's folder")
    parser.add_argument(
        "--candidates", type=int, default=most, help=f"most models of a search's front (default {most})"
    )
    add_overrides(parser)


def read_source(options: argparse.Namespace) -> "Candidates":
    """The candidates that `add_source` asked for. Raises `UserError`."""
    from doge_lab.experiment.candidates import load

    consent(options)
    in_range("--candidates", options.candidates, 2, 1000)
    with facts_alone():
        return load(options.source, options.set, most=options.candidates)


def add_training(parser: argparse.ArgumentParser, out: str) -> None:
    """Options of who trains where; `out` says which folder it is by default."""
    parser.add_argument("--workers", type=int, help="processes that train (default: a core or a GPU each)")
    parser.add_argument("--out", type=Path, help=f"folder of its runs and results (default: {out})")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda (all GPUs), cuda:1 ...")
    add_job_timeout(parser)
    add_json(parser)


def add_job_timeout(parser: argparse.ArgumentParser) -> None:
    """The option `--job-timeout`."""
    parser.add_argument(
        "--job-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="end a job that reports nothing for so long (default: 20 times the longest silence of others like it, at "
        "least 45; 300 for the first)",
    )


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {word[:50]!r}")
    return seconds


def train(experiment: "Experiment", out: Path, options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The result, which also lies in `out`, and 0, or the exit code when a signal ended it.

    Raises `UserError` for a full disk.
    """
    from doge_lab.experiment.result import result_of, write_result
    from doge_lab.experiment.runner import Runner

    code = 0
    with facts_alone(), writing_to(out):
        workers = devices(options.device, options.workers)
        runner = Runner(experiment, out, workers, options.allow_import, options.job_timeout)
        try:
            _watched(runner, quiet=options.json)
        except KeyboardInterrupt as stopped:
            code = signals.exit_code(stopped)
            signals.tell(stopped, CONTINUES)
        for reason, runs in runner.replaced.items():
            print(f"doge-lab: {runs} stored runs were trained again: {reason}", file=sys.stderr)
        write_result(experiment, runner.cells, out)
        return result_of(experiment, runner.cells), code


@contextlib.contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """A disk that is full is one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error}); what is finished is kept: make room and run the same "
            "command again",
            str(out),
        ) from None


def _watched(runner: "Runner", *, quiet: bool) -> None:
    """Run the experiment under a bar with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    told = TextColumn("{task.description}", markup=False)  # names are anyone's
    columns = (told, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("starting", total=runner.total)

        def show(runner: "Runner") -> None:
            bar.update(shown, completed=runner.done, description="; ".join(runner.notes.values()) or "training")

        runner.on_change = show
        runner.run()
