"""Every default that decides a result, as one file: python tests/golden_defaults.py writes it."""

import json
from pathlib import Path
from typing import Any

from doge_lab import registry, tasks
from doge_lab.model import ModelConfig
from doge_lab.optim import TrainConfig

FILE = Path(__file__).parent / "golden" / "defaults.json"


def defaults() -> dict[str, Any]:
    return {
        "train": _of(TrainConfig),
        "model": _of(ModelConfig),
        "tasks": {name: _of(tasks.get(name)) for name in tasks.names()},
        "blocks": {
            kind: {name: _of(registry.get(kind, name).Config) for name in registry.names(kind)}
            for kind in registry.KINDS
        },
    }


def _of(model: Any) -> dict[str, Any]:
    fields = {name: field for name, field in model.model_fields.items() if not field.is_required()}
    values = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    return json.loads(json.dumps(values, default=dict))


if __name__ == "__main__":
    FILE.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")
