"""What a run's folder holds from before, whether it still counts, and what a longer training may go on from.

FOLDER/continue.safetensors   of schedules that allow it: the state at the last step that a longer training shares
FOLDER/previous/              record and weights that were set aside: of other code, or of a shorter training that was
                              continued here; one such run is kept
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_lab.errors import UserError
from doge_lab.identity import Source
from doge_lab.optim import TrainConfig, shared_steps
from doge_lab.record import RECORD, read_record
from doge_lab.train import steps_in

WEIGHTS, CHECKPOINT, CONTINUE = "model.safetensors", "checkpoint.safetensors", "continue.safetensors"
PREVIOUS = "previous"
BUDGET = "-steps"
"""What stands before the budget in the name of a folder: those that differ in nothing else are looked at as well."""

Events = list[dict[str, Any]]
_ELSEWHERE = "choose another --out"


@dataclass(frozen=True)
class Stored:
    """events: the record of this very run as far as it is. replaces: why an earlier one does not count.

    aside: whether what the folder holds has to make room. start: a state to begin from, None for the beginning.
    """

    events: Events
    replaces: str = ""
    aside: bool = False
    start: Path | None = None


def stored(folder: Path, asked: Mapping[str, Any], source: Source, config: TrainConfig) -> Stored:
    """What there is for the run that `asked` names. Raises `UserError` where the folder holds another run."""
    events = read_record(folder)
    if not events:
        return Stored([], start=_continuation(folder, asked, source, config))
    before = events[0]
    if "identity" not in before:
        raise UserError(f"{folder} holds a run of an older doge_lab, which does not say what computed it; {_ELSEWHERE}")
    if not _same(before, asked):
        raise UserError(f"{folder} holds another run (or other options); {_ELSEWHERE}")
    if replaces := stale(before, source):
        return Stored([], replaces, aside=True)
    if before["steps"] == asked["steps"]:
        ended = events[-1]["event"] in ("end", "failed")
        return Stored(events, start=None if ended else _continuation(folder, asked, source, config))
    start = _continuation(folder, asked, source, config)
    if start is None:
        raise UserError(
            f"{folder} holds this run with {before['steps']:,} steps, which cannot be continued to {asked['steps']:,}; "
            f"{_ELSEWHERE}, or train with `schedule: wsd` or `constant` and `warmup_steps` from the start"
        )
    return Stored([], aside=True, start=start)


def _same(start: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether they are one run, but for the budget."""
    return all(start.get(key) == value for key, value in asked.items() if key != "steps")


def _continuation(folder: Path, asked: Mapping[str, Any], source: Source, config: TrainConfig) -> Path | None:
    """The furthest state of this run with another budget that leads to this one."""
    known = [(steps, path) for steps, path in _kept(folder, asked, source) if steps <= shared_steps(config)]
    return max(known)[1] if known else None


def _kept(folder: Path, asked: Mapping[str, Any], source: Source) -> Iterator[tuple[int, Path]]:
    """States of this run, with the steps behind them; a damaged one, or a neighbour's damaged record, is no state."""
    name, budget, _ = folder.name.rpartition(BUDGET)
    others = folder.parent.glob(f"{name}{BUDGET}*") if budget else ()
    for each in dict.fromkeys((folder, *others)):
        path = each / CONTINUE
        with contextlib.suppress(UserError):
            if path.exists() and (events := read_record(each)):
                start = events[0]
                if _same(start, asked) and not stale(start, source):
                    yield steps_in(path), path


def stale(start: Mapping[str, Any], source: Source) -> str:
    """Why what this record tells was computed by other code; empty when it was not."""
    if start.get("source") == source.name:
        return ""
    return changed(source.changed(start.get("modules", {})))


def changed(modules: list[str]) -> str:
    """`blocks.state.glu has changed since`, in words for any number of modules."""
    named, more = modules[:3], len(modules) - 3
    others = f" and {more} more" if more > 0 else ""
    return f"{', '.join(named)}{others} {'has' if len(modules) == 1 else 'have'} changed since"


def set_aside(folder: Path, *, forget: bool) -> None:
    """Move what the folder holds out of the way; what was set aside before is gone. `forget`: its state as well."""
    previous = folder / PREVIOUS
    half_done = (previous / WEIGHTS).exists() and not (folder / WEIGHTS).exists() and not (previous / RECORD).exists()
    if not half_done:  # a kill between the two moves
        shutil.rmtree(previous, ignore_errors=True)
    previous.mkdir(exist_ok=True)
    for name in (CHECKPOINT, CONTINUE) if forget else (CHECKPOINT,):
        (folder / name).unlink(missing_ok=True)
    # the record last: until it is gone, the folder says what happened
    for name in (WEIGHTS, RECORD):
        if (folder / name).exists():
            (folder / name).replace(previous / name)
