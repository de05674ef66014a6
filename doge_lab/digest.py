"""The source that computes a block: every module that its own reaches by imports, as a digest.

Libraries are left out (the standard library, what is installed), for their versions name them; the package of the
block itself counts whole, wherever it lies, for a block may lean on its neighbours in ways that no import shows.
Comments, docstrings and layout change no digest: it is taken of the syntax tree.

Nothing is imported here: imports are read off the source, and files found as Python would find them. What is imported
by a name made up at run time is seen in `sys.modules` alone: `loaded_besides`.
"""

import ast
import functools
import hashlib
import importlib.machinery
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from types import ModuleType

LAB = frozenset({"doge_lab", "blocks"})
"""Packages of the lab: their modules count, where they are reached, wherever they are installed."""


def reached(module: str) -> dict[str, Path]:
    """`module` and all it imports that is no library's, directly or through others: name -> file."""
    package = module.partition(".")[0]
    waiting = [*_with_parents(module), *(() if package in LAB else _members(package))]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        counts_whole = top in LAB | {package}
        if name in found or not (counts_whole or _may_be_ours(top)) or (file := _file(name)) is None:
            continue
        if counts_whole or not _is_library(file):
            found[name] = file
            waiting += _imports(name, file)
    return found


def loaded_besides(known: Iterable[str]) -> dict[str, Path]:
    """Modules in this process that are no library's, not the lab's and not among `known`: name -> file."""
    skipped = {*known, "__main__"}
    loaded = ((name, _file(name)) for name in list(sys.modules) if name not in skipped)
    return {
        name: file
        for name, file in loaded
        if file is not None and name.partition(".")[0] not in LAB and not _is_library(file)
    }


def digest(modules: Mapping[str, Path]) -> str:
    """32 hex digits that name what the modules (name -> file) compute."""
    whole = hashlib.sha256()
    for name, file in sorted(modules.items()):
        whole.update(f"{name} {_of_file(*_state(file))}\n".encode())
    return whole.hexdigest()[:32]


def as_loaded(modules: Iterable[str]) -> dict[str, str]:
    """12 hex digits for each module that `modules` reach, as this process first saw it: later edits do not reach it."""
    found: dict[str, Path] = {}
    for module in modules:
        found |= reached(module)
    return {name: _first_seen(name, file) for name, file in sorted(found.items())}


_seen: dict[str, tuple[ModuleType | None, str]] = {}


def _first_seen(name: str, file: Path) -> str:
    module = sys.modules.get(name)
    if name not in _seen or _seen[name][0] is not module:  # one that is imported anew is read anew
        _seen[name] = module, _of_file(*_state(file))[:12]
    return _seen[name][1]


def _members(package: str) -> Iterator[str]:
    """Every module of a package, its own name left out; none for a module that is a file."""
    loaded = getattr(sys.modules.get(package), "__path__", None)
    spec = None if loaded else _spec(package)
    for place in loaded or (spec.submodule_search_locations if spec else None) or ():
        for file in Path(place).rglob("*.py"):
            parts = file.relative_to(place).with_suffix("").parts
            yield ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _file(name: str) -> Path | None:
    """The file of a module, loaded or not; None for what has none, such as a built-in."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    spec = None if loaded else _spec(name)
    found = loaded or (spec.origin if spec and spec.has_location else None)
    return Path(found) if found and Path(found).is_file() else None


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where Python would find a module. Unlike `importlib.util.find_spec` it imports no parent."""
    spec, places = None, None
    for each in _with_parents(name):
        if spec is not None and places is None:
            return None  # below a module that is no package
        try:
            spec = importlib.machinery.PathFinder.find_spec(each, places)
        except (ImportError, KeyError, ValueError, OSError):  # KeyError: below a namespace that was never imported
            return None
        if spec is None:
            return None
        places = spec.submodule_search_locations
    return spec


def _imports(name: str, file: Path) -> list[str]:
    """Full names that the module may import: `from a import b` names `a` and `a.b`, and every parent of both."""
    is_package = file.name == "__init__.py"
    found: set[str] = set()
    for level, written in _written_imports(*_state(file)):
        parts = name.split(".")[: len(name.split(".")) - level + is_package] if level else []
        found.add(".".join([*parts, *filter(None, [written])]))
    return [parent for each in found for parent in _with_parents(each)]


def _with_parents(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` for `a.b.c`: importing it runs all three."""
    return list(accumulate(name.split("."), "{}.{}".format))


@functools.lru_cache(maxsize=4096)
def _written_imports(file: Path, *_: int) -> frozenset[tuple[int, str]]:
    """How many dots each import begins with, and the name after them."""
    found: set[tuple[int, str]] = set()
    for node in ast.walk(_tree(file) or ast.Module([], [])):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found |= {(node.level, base)} | {(node.level, f"{base}.{alias.name}".strip(".")) for alias in node.names}
    return frozenset(found)


@functools.lru_cache(maxsize=4096)
def _of_file(file: Path, *_: int) -> str:
    tree = _tree(file)
    if tree is None:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    for node in ast.walk(tree):
        for field, statements in ast.iter_fields(node):
            if isinstance(statements, list):
                setattr(node, field, [each for each in statements if not _is_text(each)])
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: object) -> bool:
    """A string that stands alone: a docstring, or the text below a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _tree(file: Path) -> ast.Module | None:
    """None for what is not Python: an extension module."""
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return None


def _state(file: Path) -> tuple[Path, int, int]:
    """The file, and what changes when it is written: a file is read again only then."""
    found = file.stat()
    return file, found.st_mtime_ns, found.st_size


@functools.cache
def _may_be_ours(package: str) -> bool:
    """False for what lies among the libraries, so that none of the names below it need be looked for."""
    if package in sys.stdlib_module_names:
        return False
    file = _file(package)
    return file is None or not _is_library(file)


@functools.cache
def _is_library(file: Path) -> bool:
    """Part of the standard library, or installed."""
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return any(file.is_relative_to(path) for path in [*paths, *site.getsitepackages()] if path)
