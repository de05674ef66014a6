"""Options that several commands share."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_lab.errors import UserError, shortened

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

WIDE = 200
MOST_WORKERS = 256
MOST_THREADS = 1024


def in_range(option: str, value: int | None, least: int, most: int) -> None:
    """Raise `UserError` for a number outside of `least` to `most`; None, where the option was left out, is none."""
    if value is not None and not least <= value <= most:
        raise UserError(f"must be between {least} and {most:,}, not {shortened(value)}", option)


def add_file(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help=what)
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override a value, such as --set model.layers.0.repeat=2 (repeatable)",
    )
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="consent to importing blocks that the file names as PACKAGE.module:Class (repeatable)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the same facts as JSON")


def consent(options: argparse.Namespace) -> None:
    """Allow the packages named by --allow-import."""
    from doge_lab import registry

    look_here()
    for package in options.allow_import:
        registry.allow_import(package)


def look_here() -> None:
    """Find a user's own modules in the current folder, last, so that nothing in it hides anything installed."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


@contextlib.contextmanager
def facts_alone() -> Iterator[None]:
    """While blocks are at work: what they print goes to standard error, for standard output is for facts."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def wide_console() -> "Console":
    """Standard output; where it is no terminal, wide enough that a table's rows stay on a line."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def option_facts(model: "type[BaseModel]") -> list[dict[str, Any]]:
    """The options that a file may give: name, default and what each is."""
    return [
        {"name": name, "default": field.get_default(call_default_factory=True), "description": field.description}
        for name, field in model.model_fields.items()
    ]


def in_flow(value: Any) -> str:
    """Plain data as a YAML file writes it on one line."""
    import yaml

    text = str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6))
    return text.removesuffix("...\n").strip()  # a scalar is a document, which YAML ends with dots


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))


def devices(device: str, workers: int | None) -> list[str]:
    """A device for each worker."""
    import os

    from doge_lab.run import torch_device

    in_range("--workers", workers, 1, MOST_WORKERS)
    torch_device(device)
    if device != "cuda":
        return [device] * (
            workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        )
    import torch

    gpus = torch.cuda.device_count()
    return [f"cuda:{index % gpus}" for index in range(workers or gpus)]
