"""A block's name is its file, found lazily.

`attention` is `blocks/sequence/attention.py`; looking it up imports that file alone, so a block whose optional
dependency is missing breaks no other block, and nothing has to be registered. A third party's block comes through
the entry-point group `doge_lab.sequence` or `doge_lab.state`, or is named `package.module:Class`.

This module imports no block and not even torch, so that listing names is quick.
"""

import ast
import functools
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from doge_lab.errors import UserError, did_you_mean, shortened

if TYPE_CHECKING:
    from doge_lab.block import Block, Kind

KINDS: tuple["Kind", "Kind"] = ("sequence", "state")

_allowed_packages: set[str] = set()


@dataclass(frozen=True)
class BlockInfo:
    """One row of the catalogue. `source` is the citation in the block's docstring, `where` its module."""

    name: str
    kind: "Kind"
    summary: str
    source: str
    where: str


def allow_import(package: str) -> None:
    """Consent to importing `package.module:Class` named in a file. Naming a class on a command line is consent."""
    _allowed_packages.add(package.split(":")[0].split(".")[0])


def names(kind: "Kind") -> list[str]:
    """Every name known for `kind`, without importing any block. Raises `UserError` when two blocks share one."""
    ours = [module.name for module in pkgutil.iter_modules(_folder(kind).__path__)]
    theirs = [point.name for point in _entry_points(kind)]
    everyone = ours + theirs
    for name in theirs:
        if everyone.count(name) > 1:
            packages = ", ".join(_owner(point) for point in _entry_points(kind) if point.name == name)
            raise UserError(
                f"two {kind} blocks are named {name!r}; one comes from {packages}. Uninstall one of them, "
                "or name its class as package.module:Class"
            )
    return sorted(everyone)


def get(kind: "Kind", name: str) -> type["Block"]:
    """The block class called `name` (or `package.module:Class`). Raises `UserError` with a suggestion."""
    if ":" in name:
        return _checked(kind, name, _import_class(name))
    known = names(kind)
    if name not in known:
        other = "state" if kind == "sequence" else "sequence"
        if name in names(other):  # type: ignore[arg-type]
            raise UserError(f"{shortened(name)} is a {other} block, not a {kind} block")
        raise UserError(f"no {kind} block is named {shortened(name)}{did_you_mean(name, known)}")
    for point in _entry_points(kind):
        if point.name == name:
            return _checked(kind, name, _imported(name, point.load))
    return _only_block(kind, _imported(name, lambda: importlib.import_module(f"{_folder(kind).__name__}.{name}")))


def find(name: str) -> list[tuple["Kind", type["Block"]]]:
    """Every block called `name`, of either kind; naming a class here is consent to import it."""
    if ":" in name:
        allow_import(name)
        block = _checked(None, name, _import_class(name))
        return [(block.kind, block)]
    found = [(kind, get(kind, name)) for kind in KINDS if name in names(kind)]
    if not found:
        known = [known for kind in KINDS for known in names(kind)]
        raise UserError(f"no block is named {shortened(name)}{did_you_mean(name, known)}")
    return found


def is_ours(block: type["Block"]) -> bool:
    """Whether it is one of the lab's own blocks."""
    return block.__module__.partition(".")[0] == "blocks"


def catalogue() -> list[BlockInfo]:
    """Every block, read from its docstring without importing it."""
    return [_info(kind, name) for kind in KINDS for name in names(kind)]


def _info(kind: "Kind", name: str) -> BlockInfo:
    points = [point for point in _entry_points(kind) if point.name == name]
    module = points[0].module if points else f"blocks.{kind}.{name}"
    spec = importlib.util.find_spec(module)
    text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    summary, source = summary_and_source(ast.get_docstring(ast.parse(text)) or name)
    return BlockInfo(name, kind, summary, source or module, module)


def summary_and_source(docstring: str) -> tuple[str, str]:
    """The first paragraph of a module's docstring, and what it cites after `Source:`, each on one line."""
    cited = re.search(r"^Source: (.+?)(?:\n\n|\Z)", docstring, flags=re.MULTILINE | re.DOTALL)
    return " ".join(docstring.split("\n\n")[0].split()), " ".join(cited[1].split()) if cited else ""


def _only_block(kind: "Kind", module: ModuleType) -> type["Block"]:
    """The single block class that a file defines."""
    from doge_lab.block import Block

    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Block) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(f"{module.__file__} must define one block, it defines {[block.__name__ for block in found]}")
    return _checked(kind, module.__name__, found[0])


def _checked(kind: "Kind | None", name: str, block: object) -> type["Block"]:
    from doge_lab.block import SequenceBlock, StateBlock

    if not (isinstance(block, type) and issubclass(block, SequenceBlock | StateBlock)):
        raise UserError(
            f"{shortened(name)} is not a block class: subclass SequenceBlock or StateBlock of doge_lab.block"
        )
    if kind is not None and block.kind != kind:
        raise UserError(f"{shortened(name)} is a {block.kind} block, not a {kind} block")
    return block


def _imported(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # a module runs whatever its author wrote
        raise UserError(f"the block {shortened(name)} cannot be imported: {type(error).__name__}: {error}") from error


def _import_class(name: str) -> object:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UserError(f"{shortened(name)} must look like package.module:Class")
    package = module_name.split(".")[0]
    if package not in _allowed_packages:
        raise UserError(f"{shortened(name)} names code to import; if you trust it, say --allow-import {package[:60]}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # likewise
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot import {shortened(module_name)}, named by {shortened(name)}: {said}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UserError(f"module {shortened(module_name)} has no {shortened(attribute)}") from None


@functools.cache
def _folder(kind: "Kind") -> ModuleType:
    """Our package of blocks; a user's own folder called `blocks`, found first on the path, is named and refused."""
    package = importlib.import_module("blocks")
    ours = Path(__file__).resolve().parent.parent / "blocks"
    found = [Path(place).resolve() for place in package.__path__]
    if ours not in found:
        raise UserError(
            f"the folder {found[0]} is called `blocks` and hides doge_lab's own ({ours}); "
            "rename it, or start Python with -P"
        )
    return importlib.import_module(f"blocks.{kind}")


@functools.cache
def _entry_points(kind: "Kind") -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"doge_lab.{kind}"))


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module
