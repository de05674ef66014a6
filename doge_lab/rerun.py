"""Repeating a recorded run, and saying whether it came out the same.

On the same machine, with the same code and packages, the curve and every metric must agree to the bit. Elsewhere the
bits must agree within the task's own interval or, where it has none, within 5 %: the standard deviation between seeds
of a capacity run is up to 4 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from doge_lab import config as runs
from doge_lab.config import RunConfig
from doge_lab.errors import UserError, in_file, shortened
from doge_lab.record import RECORD, read_record
from doge_lab.run import OnReport, execute
from doge_lab.tasks import ScoredOn, Task
from doge_lab.train import Diverged

Events = Sequence[Mapping[str, Any]]
TOLERANCE = 0.05
SETUP = ("source", "packages", "python", "machine", "threads")
"""What must be equal for the bits to be."""
MOST_THREADS = 1024
CURVE = ("step", "loss", "aux_loss", "lr")


@dataclass(frozen=True)
class Recorded:
    """A finished run as its record tells it."""

    folder: Path
    events: Events
    run: RunConfig
    task: Task

    @property
    def start(self) -> Mapping[str, Any]:
        return self.events[0]

    @property
    def device(self) -> str:
        return str(self.start["machine"]["device"])


@dataclass(frozen=True)
class Verdict:
    """exact: whether everything was asked to be equal. setup: what was not as recorded. differences: what disagrees.

    bits: recorded and now; None where the training diverged.
    """

    exact: bool
    setup: list[str]
    differences: list[str]
    bits: tuple[float | None, float | None]

    @property
    def agrees(self) -> bool:
        return not self.differences


def load(path: Path) -> Recorded:
    """Read a run's folder or its record. Raises `UserError` for a record that is not there, torn or unfinished."""
    folder = path.parent if path.name == RECORD else path
    events = read_record(folder)
    with in_file(path):
        if not events:
            raise UserError(f"holds no {RECORD} of a run")
        start = events[0]
        if not isinstance(start["machine"].get("device"), str) or start["scored_on"] not in get_args(ScoredOn):
            raise UserError("does not say on which device and data it was trained; train again instead")
        if not 1 <= start["threads"] <= MOST_THREADS:
            raise UserError(f"must be between 1 and {MOST_THREADS:,}, not {shortened(start['threads'])}", "threads")
        if events[-1]["event"] not in ("end", "failed"):
            raise UserError("this run is not finished; the command that began it continues it")
        run = runs.parse(start["config"])
        task = next((task for task in run.tasks if task.label == start["task"]), None)
        if task is None:
            raise UserError(f"its configuration has no task {shortened(start['task'])}")
        return Recorded(folder, events, run, task)


def repeat(recorded: Recorded, out: Path, *, device: str, on_report: OnReport = lambda report: None) -> Verdict:
    """Train and score it again in `out`, and compare. Raises `UserError` when `out` holds anything."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is a file or not empty; choose another --out", "--out")
    scored_on = recorded.start["scored_on"]
    torch.set_num_threads(recorded.start["threads"])  # sums come out differently over another number
    try:
        execute(recorded.run, recorded.task, out, scored_on=scored_on, device=device, on_report=on_report)
    except Diverged:
        pass  # a result like any other: the record holds it
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a third party's block may have changed in any way
        raise UserError(f"the run ended with {type(error).__name__}: {error}", str(out)) from error
    return compare(recorded.events, read_record(out))


def compare(before: Events, after: Events) -> Verdict:
    """What should be the same in two records of one run, and is not."""
    setup = [name for name in SETUP if before[0].get(name) != after[0].get(name)]
    differences = [] if before[0]["data_hash"] == after[0]["data_hash"] else ["data_hash"]
    ends = before[-1], after[-1]
    if ends[0]["event"] != ends[1]["event"]:
        differences.append("one of the two diverged")
    elif ends[0]["event"] == "end":
        pair = ends[0]["metrics"], ends[1]["metrics"]
        differences += _not_within(*pair) if setup else _not_equal(*pair)
    # a run that went on from another has the rest of the curve alone
    from_step = max(event.get("continues", 0) for event in (*before, *after) if event["event"] == "start")
    if not setup and _curve(before, from_step) != _curve(after, from_step):
        differences.append("the curve")
    first, second = (end.get("metrics", {}).get("bits") for end in ends)
    return Verdict(not setup, setup, differences, (first, second))


def _not_equal(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def _not_within(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    low, high = before.get("bits_interval") or (before["bits"], before["bits"])
    allowed = max((high - low) / 2, TOLERANCE * abs(before["bits"]))
    return ["bits"] if abs(after["bits"] - before["bits"]) > allowed else []


def _curve(events: Events, from_step: int) -> dict[int, tuple[Any, ...]]:
    """By step: a run that was interrupted reports some steps twice."""
    points = [event for event in events if event["event"] == "report" and event["step"] > from_step]
    return {point["step"]: tuple(point[name] for name in CURVE) for point in points}
