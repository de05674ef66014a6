"""Checks of a block's options: they survive JSON and YAML, and what cannot be used is refused in one clear line.

Source of the values tried: the fields of the block's own `Config`.
"""

import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from doge_lab import registry
from doge_lab.errors import UserError
from doge_lab.model import BlockRef
from doge_lab.testing.case import Case, check, output, require

WHOLE_NUMBERS = (0, -1, 1, 7)
FRACTIONS = (0.0, -1.0, 0.37, float("nan"), float("inf"))


@check()
def config_round_trip(case: Case) -> None:
    """A Config written as JSON or YAML and read back is equal, and builds an equal block."""
    block = case.build()
    written = block.config.model_dump(mode="json")
    for form, read in (("JSON", json.loads(json.dumps(written))), ("YAML", yaml.safe_load(yaml.safe_dump(written)))):
        again = case.block.Config.model_validate(read)
        require(again == block.config, f"the config read back from {form} is {again!r}, not {block.config!r}")
    rebuilt = Case(case.block, again.model_dump(), case.d_model).build()
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (block, rebuilt)]
    require(shapes[0] == shapes[1], "a block built from the config read back has other parameters")
    name = _registered_name(case)
    if name is not None:
        ref = BlockRef.parse(case.block.kind, {"type": name, **written})
        require(BlockRef.parse(case.block.kind, ref.dump()) == ref, f"{name!r} and its options do not survive a file")


def _registered_name(case: Case) -> str | None:
    """The name under which the registry knows this very class, if any."""
    kind, stem = case.block.kind, case.block.__module__.rpartition(".")[2]
    return stem if stem in registry.names(kind) and registry.get(kind, stem) is case.block else None


@check()
def bad_options_refused(case: Case) -> None:
    """Unknown options, wrong types and numbers that cannot work are refused in one line that names the option."""
    fields = case.block.Config.model_fields
    misspelt = f"{next(iter(fields), 'optio')}x"
    _require_refusal(case, misspelt, 1)
    for name, field in fields.items():
        types = _types(field.annotation)
        if not types & {Any, dict}:
            _require_refusal(case, name, {"nonsense": 1})
        numbers = (WHOLE_NUMBERS if int in types else ()) + (FRACTIONS if float in types else ())
        for number in numbers:
            _require_refused_or_working(case, name, number)
        if "literal" in types:
            _require_refusal(case, name, "no such choice")


def _types(annotation: Any) -> set[Any]:
    """The plain types inside an annotation; `"literal"` for a choice among words."""
    if typing.get_origin(annotation) is typing.Literal:
        return {"literal"}
    if typing.get_origin(annotation) in (dict, Mapping):
        return {dict}
    inner = typing.get_args(annotation)
    return {annotation} if not inner else set().union(*(_types(part) for part in inner if not _is_metadata(part)))


def _is_metadata(part: Any) -> bool:
    return not (isinstance(part, type) or typing.get_origin(part) is not None)


def _refusal(case: Case, name: str, value: Any) -> str | None:
    """The message with which `name: value` is refused; None when a block was built and ran."""
    options = {**case.options, name: value}
    try:
        block = Case(case.block, options, case.d_model).build()
    except (UserError, ValueError) as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{name}={value!r} is refused by {type(error).__name__}: {_first_line(error)}") from error
    try:
        y = output(block, case.input(2, 9))
    except Exception as error:
        raise AssertionError(
            f"{name}={value!r} is accepted, then the block fails: {type(error).__name__}: {_first_line(error)}"
        ) from error
    require(y.shape == (2, 9, case.d_model), f"{name}={value!r} is accepted and gives an output of {tuple(y.shape)}")
    require(torch.isfinite(y).all(), f"{name}={value!r} is accepted and gives an output that is not finite")
    return None


def _require_refused_or_working(case: Case, name: str, value: Any) -> None:
    message = _refusal(case, name, value)
    if message is not None:
        # a plain number may break a rule between two options, stated in the words of the other one
        others = list(case.block.Config.model_fields) if value in (1, 7, 0.37) else []
        _require_clear(message, name, value, others)


def _require_refusal(case: Case, name: str, value: Any) -> None:
    message = _refusal(case, name, value)
    require(message is not None, f"{name}={value!r} is accepted")
    _require_clear(str(message), name, value)


def _require_clear(message: str, name: str, value: Any, others: Sequence[str] = ()) -> None:
    lines = len(message.splitlines())
    require(lines == 1, f"{name}={value!r} is refused in {lines} lines; write one")
    named = any(word in message for word in (name, *others))
    require(named, f"the message that refuses {name}={value!r} does not name the option: {message}")


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
