"""The challenger: a block named as `package.module:Class`, as a file that holds one, or by its name on the shelf."""

import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from doge_lab import registry
from doge_lab.block import Kind, SequenceBlock, StateBlock
from doge_lab.config import RunConfig
from doge_lab.engine.checks import KNOWN_FAULT, cases_of, examine
from doge_lab.errors import UserError
from doge_lab.model import BlockRef


@dataclass(frozen=True)
class Newcomer:
    """written: the block as a file writes it. name: what its arm is called. package: what workers must import."""

    kind: Kind
    name: str
    written: Mapping[str, Any]
    package: str | None

    @property
    def of_the_shelf(self) -> bool:
        """Whether it is a block of the shelf with its defaults, which is not its own rival."""
        return set(self.written) == {"type"} and self.package is None

    @property
    def folder(self) -> str:
        """Its name, as a folder can be called on any system."""
        return "challenge-" + re.sub(r"[^\w.-]+", "-", self.name).strip("-")[:80]


def load(word: str, options: Mapping[str, Any]) -> Newcomer:
    """Find the block; naming it on the command line is consent to import it. Raises `UserError`.

    Options that are its defaults are left out: with them alone it is a block of the shelf.
    """
    path, _, wanted = word.partition(":")
    type_ = _from_file(Path(path), wanted) if path.endswith(".py") else word
    found = registry.find(type_)
    if len(found) > 1:
        raise UserError(f"{word!r} is a sequence block and a state block; name its class as package.module:Class")
    ((kind, _),) = found
    package = type_.partition(".")[0].partition(":")[0] if ":" in type_ else None
    chosen = BlockRef.parse(kind, {**options, "type": type_}).options.model_dump(mode="json", exclude_defaults=True)
    said = ", ".join(f"{name}: {value!r}" for name, value in chosen.items())
    short = type_.rpartition(":")[2]
    if package and short in registry.names(kind):
        short = type_  # a rival has that name
    return Newcomer(kind, f"{short} ({said})" if said else short, {"type": type_, **chosen}, package)


def _from_file(path: Path, wanted: str) -> str:
    """`module:Class` of a file, whose folder is put last on the path."""
    if not path.is_file():
        raise UserError("no such file", str(path))
    if not path.stem.isidentifier():
        raise UserError(
            f"{path.stem!r} cannot be a module's name; rename the file with letters, digits and _", str(path)
        )
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(path.stem)
    except (Exception, SystemExit) as error:  # a file that runs when it is imported may do anything
        raise UserError(f"cannot be imported: {type(error).__name__}: {error}", str(path)) from error
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise UserError(f"another module is called {path.stem!r}; rename the file", str(path))
    names = [wanted] if wanted else _blocks_in(module)
    if len(names) != 1:
        said = f"defines {', '.join(names)}; say which: {path}:{names[0]}" if names else "defines no block"
        raise UserError(said, str(path))
    return f"{path.stem}:{names[0]}"


def _blocks_in(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, SequenceBlock | StateBlock)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]


def failures(newcomer: Newcomer, run: RunConfig, *, allow_faults: bool) -> list[str]:
    """The checks of the contract that the block fails in the options that `run` gives it, matched width included."""
    said = []
    for case in cases_of(run.dump()):
        if (case.kind, case.type) == (newcomer.kind, newcomer.written["type"]):
            said += [
                f"{result['name']}: {result['message']}"
                for result in examine(case)
                if not (allow_faults and result["status"] == KNOWN_FAULT)
            ]
    return said
