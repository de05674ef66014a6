"""What a run's folder holds from before, and whether it still counts.

FOLDER/previous/   record and weights of the run that other code computed, set aside when the run is trained again; one
                   such run is kept
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_lab.errors import UserError
from doge_lab.identity import Source
from doge_lab.record import RECORD, read_record

WEIGHTS, CHECKPOINT, PREVIOUS = "model.safetensors", "checkpoint.safetensors", "previous"

Events = list[dict[str, Any]]


def stored(folder: Path, asked: Mapping[str, Any], source: Source) -> tuple[Events, str]:
    """The record of this very run as far as it is, and why an earlier one does not count; either may be empty.

    Raises `UserError` where the folder holds another run.
    """
    events = read_record(folder)
    if not events:
        return [], ""
    start = events[0]
    if "identity" not in start:
        raise UserError(f"{folder} holds a run of an older doge_lab, which does not say what computed it; {_ELSEWHERE}")
    if {key: start.get(key) for key in asked} != asked:
        raise UserError(f"{folder} holds another run (or other options); {_ELSEWHERE}")
    return events, stale(start, source)


_ELSEWHERE = "choose another --out"


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


def set_aside(folder: Path) -> None:
    """Move what other code computed out of the way; what stood there before is gone."""
    previous = folder / PREVIOUS
    shutil.rmtree(previous, ignore_errors=True)
    previous.mkdir()
    (folder / CHECKPOINT).unlink(missing_ok=True)
    # the record last: until it is gone, the folder says what happened
    for name in (WEIGHTS, RECORD):
        if (folder / name).exists():
            (folder / name).replace(previous / name)
