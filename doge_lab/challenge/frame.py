"""The model and the tasks that a challenger and its rivals are set into: alike but for one block.

quick_sequence.yaml, quick_state.yaml   two tasks, for a laptop      full_*.yaml   every task, for a GPU
shelf_sequence.json, shelf_state.json   what the blocks of the shelf came to in the quick frames (benchmarks/shelf.py)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from doge_lab import config as runs
from doge_lab import registry
from doge_lab.block import Kind
from doge_lab.experiment.config import Experiment, arms_of
from doge_lab.experiment.plan import REPORTED_SEED
from doge_lab.experiment.result import costs
from doge_lab.strict import validate
from doge_lab.yamlfile import parse_mapping

Mode = Literal["quick", "full"]
Record = Mapping[str, Any]
"""An experiment's result: an entry of `arms` for each block."""


@dataclass(frozen=True)
class Frame:
    """Where blocks of one kind stand for the comparison."""

    kind: Kind
    mode: Mode

    def written(self) -> dict[str, Any]:
        """`base` and `protocol`, as the file says."""
        name = f"{self.mode}_{self.kind}.yaml"
        return parse_mapping(files("doge_lab.challenge").joinpath(name).read_text(encoding="utf-8"), name)

    def experiment(self, blocks: Mapping[str, Any]) -> Experiment:
        """Each of `blocks` (name -> a block as a file writes it) in the frame, an arm each."""
        arms = {name: {f"model.layers.1.{self.kind}": block} for name, block in blocks.items()}
        return validate(Experiment, {**self.written(), "name": f"challenge-{self.kind}", "arms": arms})

    def shelf(self) -> list[str]:
        """The names of all blocks that a challenger can meet."""
        return [name for name in registry.names(self.kind) if name != "none"]

    def priced(self) -> list[Record]:
        """The blocks of the shelf with what each costs in this frame."""
        stored = self.stored()
        if stored is not None:
            return list(stored["arms"])
        names = self.shelf()
        arms = arms_of(self.experiment(dict(zip(names, names, strict=True))))
        return [{"name": arm.name, "cost": costs(arm)} for arm in arms]

    def data(self) -> dict[str, str]:
        """A hash of the first data that each task scores: differences by seed need the same data on both sides."""
        tasks = runs.parse(self.written()["base"]).tasks
        return {task.label: task.data(seed=REPORTED_SEED, scored_on="test").data_hash() for task in tasks}

    def stored(self) -> Record | None:
        """What the shelf came to in this frame; None where nothing is stored, or it is of another frame or data."""
        path = files("doge_lab.challenge").joinpath(f"shelf_{self.kind}.json")
        if self.mode != "quick" or not path.is_file():
            return None
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        return record if (record["frame"], record["data"]) == (self.written(), self.data()) else None


def slim(result: Record, frame: Frame) -> dict[str, Any]:
    """A result as it is stored: without models and grids, with the frame and the data that it belongs to."""
    kept = ("bits", "accuracy", "train", "seconds", "cpu_seconds", "diverged", "failed", "saturated")
    metrics = ("bits", "max_bits", "accuracy", "guess_bits", "saturation")
    return {
        "frame": frame.written(),
        "data": frame.data(),
        **{key: result[key] for key in ("code", "protocol", "tasks")},
        "arms": [
            {
                "name": arm["name"],
                "cost": arm["cost"],
                "tasks": {
                    label: {key: cell[key] for key in kept}
                    | {"seeds": [{**seed, "metrics": _only(seed["metrics"], metrics)} for seed in cell["seeds"]]}
                    for label, cell in arm["tasks"].items()
                },
            }
            for arm in result["arms"]
        ],
    }


def _only(metrics: Mapping[str, Any] | None, names: tuple[str, ...]) -> dict[str, Any] | None:
    return None if metrics is None else {name: metrics[name] for name in names if name in metrics}
