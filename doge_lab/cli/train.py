"""`doge-lab train`: train one model on its tasks and score it in bits."""

import argparse
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_lab.cli.options import MOST_THREADS, add_file, add_json, consent, facts_alone, in_range, print_json
from doge_lab.errors import UserError, in_file

if TYPE_CHECKING:
    from doge_lab.config import RunConfig
    from doge_lab.train import StepReport


def add(commands: Any) -> None:
    parser = commands.add_parser("train", help="train one model and score it", description=__doc__)
    add_file(parser, "a run file: model and tasks")
    parser.add_argument("--out", type=Path, help="folder for records and weights (default: runs/NAME)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1, as in a search)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import torch

    from doge_lab.config import load
    from doge_lab.files import only_one
    from doge_lab.run import execute, torch_device
    from doge_lab.stored import PREVIOUS
    from doge_lab.train import Diverged

    consent(options)
    in_range("--threads", options.threads, 1, MOST_THREADS)
    torch.set_num_threads(options.threads)
    torch_device(options.device)
    with in_file(options.file):
        run = load(options.file, options.set).resolved()
        if not run.tasks:
            raise UserError("there is nothing to train on; add tasks, such as `tasks: [{type: capacity}]`", "tasks")
    out = options.out or Path("runs") / str(run.name)
    ends = {}
    with only_one(out, "run"), _Progress(run, quiet=options.json) as progress, facts_alone():
        for task in run.tasks:
            try:
                ends[task.label] = execute(
                    run, task, out / task.label, device=options.device, on_report=progress.reporter(task.label)
                )
            except Diverged as error:
                raise UserError(f"{error}; lower train.lr, now {run.train_config(task).lr}", task.label) from None
            except OSError as error:
                raise UserError(f"cannot be written: {error.strerror}", str(error.filename or out)) from None
            except (UserError, MemoryError):
                raise
            except Exception as error:  # a block may raise anything
                where = out / task.label / "error.txt"
                where.parent.mkdir(parents=True, exist_ok=True)
                where.write_text(traceback.format_exc(), encoding="utf-8")
                said = f"{type(error).__name__}: {error}"
                raise UserError(f"a block raised {said} (the traceback is in {where})", task.label) from error
    facts = {
        "name": run.name,
        "out": str(out),
        "seed": run.seed,
        "seeds": 1,
        "cost": run.cost().dump(),
        "tasks": {label: _scores(end) for label, end in ends.items()},
    }
    for label, end in ends.items():
        if "replaces" in end:
            kept = out / label / PREVIOUS
            print(f"doge-lab: {label} was trained again: {end['replaces']} (before: {kept})", file=sys.stderr)
    because = sorted({end["because"] for end in ends.values() if "because" in end})
    for reason in because:
        print(f"doge-lab: a repeat may differ in the last bits: {reason}", file=sys.stderr)
    if options.json:
        print_json(facts)
    else:
        print_scores(facts, f"One seed ({run.seed}), so no interval. Records and weights: {out}")
    return 0


def _scores(end: Mapping[str, Any]) -> dict[str, Any]:
    replaces = {"replaces": end["replaces"]} if "replaces" in end else {}
    return {**end["metrics"], "seconds": end["wall_seconds"], **replaces}


class _Progress:
    """A bar per task with the time left, on standard error; where that is no terminal, a line now and then."""

    def __init__(self, run: "RunConfig", *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, quiet=quiet)
        self._tenths: dict[str, int] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._rows = {
            task.label: self._bars.add_task(task.label, total=run.train_config(task).steps, loss=float("nan"))
            for task in run.tasks
        }

    def __enter__(self) -> "_Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def reporter(self, label: str) -> Any:
        def report(point: "StepReport") -> None:
            self._bars.update(self._rows[label], completed=point.step, loss=point.loss)
            tenth = 10 * point.step // point.steps
            if self._bars.disable and tenth != self._tenths.get(label):
                self._tenths[label] = tenth
                left = point.seconds / point.step * (point.steps - point.step)
                self._console.print(f"{label} {point.step}/{point.steps}, loss {point.loss:.3f}, {left:.0f} s left")

        return report


def print_scores(facts: Mapping[str, Any], note: str) -> None:
    """A line for each task, then `note`."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "bits", "of", "bits/param", "bits/active param", "accuracy", "seconds", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, metrics in facts["tasks"].items():
        table.add_row(
            label,
            f"{metrics['bits']:,.1f}",
            f"{metrics['max_bits']:,.1f}",
            f"{metrics['bits_per_param']:.3f}",
            f"{metrics['bits_per_active_param']:.3f}",
            f"{metrics['accuracy']:.3f}",
            f"{metrics['seconds']:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(note, soft_wrap=True)
