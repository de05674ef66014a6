"""Every op there is: found by looking, so that there is nothing to register."""

import importlib
import pkgutil
from typing import Any

from doge_lab import ops
from doge_lab.ops.dispatch import Op


def every_op() -> dict[str, Op[Any, Any]]:
    """The ops of all files in `doge_lab/ops`, by name."""
    found: dict[str, Op[Any, Any]] = {}
    for module in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Op):
                found[value.name] = value
    return found
