"""What a block holds outside its parameters and buffers, wherever it keeps it.

Looked through: the attributes of its modules, their classes, functions with their closures, defaults and the globals
that they name, containers, caches of functions, and whatever objects of modules that are no library hold in turn.
"""

import functools
import gc
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

_LIBRARIES = frozenset({"doge_lab", "torch", "numpy", "pydantic", "einx", "transformers", *sys.stdlib_module_names})
_REGISTERED = frozenset({"_parameters", "_buffers", "_modules", "router_stats"})
_OF_EVERY_MODULE = frozenset({*vars(types.ModuleType("any")), "__builtins__", "__file__", "__cached__", "__path__"})
_MOST = 20_000
"""Objects looked at: more than any block has, so that a walk ends."""

_WRAPPERS = (
    *(staticmethod, classmethod, types.MethodType, functools.partial, property),
    functools._lru_cache_wrapper,  # with the results that it keeps
)
Place = tuple[str, Any]


def numbers_elsewhere(block: nn.Module, registered: Iterable[Tensor]) -> dict[str, int]:
    """How many numbers are held where no count sees them: place -> numbers."""
    # views are new objects each time: what tells tensors apart is the storage
    known = {_storage(tensor) for tensor in registered}
    found: dict[str, int] = {}
    seen: dict[int, Any] = {}
    queue: list[Place] = [("", module) for module in block.modules()]
    while queue and len(seen) < _MOST:
        place, value = queue.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value  # kept alive, so that no other object takes its id
        if not (isinstance(value, Tensor) and _storage(value) in known):
            held = _numbers(value)
            if held > 1:
                found[place] = held
        queue += [(f"{place}.{name}".strip("."), part) for name, part in _parts(value)]
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _numbers(value: Any) -> int:
    """Numbers that this very object holds."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return int(value.size)
    if isinstance(value, int):
        return value.bit_length() // 32
    if isinstance(value, str | bytes | bytearray | memoryview):
        return len(value) // 4
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return sum(isinstance(part, int | float | complex) for part in value) if _is_container(value) else 0


def _is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _parts(value: Any) -> Iterator[Place]:
    """What `value` leads to, with a word for the way there."""
    if isinstance(value, dict):
        yield from ((str(key)[:40], part) for key, part in value.items())
    elif _is_container(value):
        yield from ((str(index), part) for index, part in enumerate(value))
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.ModuleType):
        if not _is_library(value.__name__):
            yield from ((k, v) for k, v in vars(value).items() if k not in _OF_EVERY_MODULE and not _is_code(v))
    elif isinstance(value, type):
        if not _is_library(value.__module__):
            yield from ((name, part) for name, part in vars(value).items() if not name.startswith("__"))
            yield from (("", base) for base in value.__bases__)
    elif isinstance(value, _WRAPPERS):
        yield from (("", part) for part in gc.get_referents(value))
    elif hasattr(value, "__dict__"):
        yield from ((name, part) for name, part in vars(value).items() if name not in _REGISTERED)
        yield "", type(value)
    elif type(value).__module__ in sys.stdlib_module_names and not isinstance(value, str | bytes | int | float):
        yield from (("", part) for part in gc.get_referents(value))  # caches, deques, generators


def _of_function(function: types.FunctionType) -> Iterator[Place]:
    if _is_library(function.__module__):
        return
    for cell in function.__closure__ or ():
        if cell != types.CellType():
            yield f"{function.__name__}()", cell.cell_contents
    yield f"{function.__name__}()", (function.__defaults__, function.__kwdefaults__, vars(function))
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _is_code(value: Any) -> bool:
    return isinstance(value, type | types.FunctionType)


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES
