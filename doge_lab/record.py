"""The record of a run, `record.jsonl`: an event on each line, on disk as soon as it happened.

start: configuration, code, packages, seed, data hash, cost, device      report: a point of the curve
end: metrics; wall, CPU and GPU seconds of it all                        failed: the reason
"""

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from doge_lab.errors import UserError

RECORD = "record.jsonl"

_SCORES = ("bits", "max_bits", "bits_per_param", "bits_per_active_param", "accuracy")
_FACTS: Mapping[str, Mapping[str, type]] = {
    "start": dict.fromkeys(("config", "code", "packages", "machine"), dict)
    | dict.fromkeys(("task", "scored_on", "data_hash", "python"), str)
    | {"threads": int},
    "report": {"step": int} | dict.fromkeys(("loss", "aux_loss", "lr"), float),
    "end": {"metrics": dict} | dict.fromkeys(("wall_seconds", "cpu_seconds"), float),
    "failed": {"reason": str},
}
"""What every reader of an event relies on."""


class Writer:
    """Appends events, a line each, on disk before the call returns."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD

    def __call__(self, event: str, **facts: Any) -> dict[str, Any]:
        content = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(content, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return content


def read_record(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, the first a start; empty when there is no record.

    A line torn by a kill is left out: the last one, or the one before the run began again. Raises `UserError` for a
    record that is damaged or cannot be read.
    """
    path = folder / RECORD
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from None
    events: list[dict[str, Any]] = []
    damaged = 0
    for number, line in reversed(list(enumerate(lines, 1))):
        event = _event(line)
        if event is not None:
            events.insert(0, event)
        elif events and events[0]["event"] != "start":
            damaged = number
    if damaged:
        raise UserError(
            f"line {damaged} is damaged; {len(events)} of {len(lines)} lines can be read. Mend it, or train again into "
            "another folder",
            file=str(path),
        )
    if events and events[0]["event"] != "start":
        raise UserError("does not begin with how the run was started; train again into another folder", file=str(path))
    return events


def _event(line: bytes) -> dict[str, Any] | None:
    """The event on a line, None where it is none that `Writer` wrote."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or (facts := _FACTS.get(str(event.get("event")))) is None:
        return None
    scores = dict.fromkeys(_SCORES, float) if event["event"] == "end" else {}
    sound = _holds(event, facts) and _holds(event.get("metrics", {}), scores)
    return event if sound else None


def _holds(facts: Mapping[str, Any], kinds: Mapping[str, type]) -> bool:
    return all(_is_a(facts.get(name), kind) for name, kind in kinds.items())


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not isinstance(value, bool)
