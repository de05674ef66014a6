"""Reading YAML and JSON: safely, and with one clear line when a file cannot be used."""

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from doge_lab.errors import UserError

LARGEST_BYTES = 10_000_000
MOST_VALUES = 1_000_000


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, where a key written twice is an error rather than a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is written twice", key_node.start_mark)
            seen.add(key if isinstance(key, str) else repr(key))
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises `UserError` naming the file and the line."""
    return parse_mapping(_read_text(path), str(path))


def parse_mapping(text: str, file: str) -> dict[str, Any]:
    """The mapping that `text` writes, the content of `file`. Raises `UserError` naming the file and the line."""
    try:
        content = json.loads(text, object_pairs_hook=_unique) if file.endswith(".json") else yaml.load(text, _Loader)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON at line {error.lineno}: {error.msg}", file=file) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML{_place(error)}", file=file) from None
    except UserError as error:
        raise UserError(error.message, file=file) from None
    except ValueError as error:
        raise UserError(f"holds a value that cannot be read: {error}", file=file) from None
    except RecursionError:
        raise UserError("nested too deeply", file=file) from None
    if content is None:
        raise UserError("the file is empty", file=file)
    if not isinstance(content, dict):
        raise UserError(f"the file must hold a mapping such as `model: ...`, not a {type(content).__name__}", file=file)
    if _size(content, {}) > MOST_VALUES:
        raise UserError(
            f"aliases in it stand for more than {MOST_VALUES:,} values, which no configuration holds", file=file
        )
    try:
        return _plain(content)
    except ValueError:
        raise UserError("an alias in the file refers to itself", file=file) from None
    except TypeError:
        raise UserError("the names in a mapping must be text", file=file) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, where a key written twice is an error as it is in YAML."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name!r} is written twice")
    return dict(pairs)


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """A copy in which nothing is shared and dates are text again. Raises `ValueError` for a circle."""
    copied: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return copied


def _size(value: Any, known: dict[int, int]) -> int:
    """Values in `value` with every alias written out; what is shared is counted once and remembered in `known`."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = 0  # met again below itself: a circle, which the copy refuses
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError("this is a folder; name a YAML or JSON file in it", file=str(path))
        if path.stat().st_size > LARGEST_BYTES:
            raise UserError(
                f"the file is larger than {LARGEST_BYTES:,} bytes, which no configuration is", file=str(path)
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such file", file=str(path)) from None
    except UnicodeDecodeError:
        raise UserError("this is not a text file", file=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from None
    if "\0" in text:
        raise UserError("this is not a text file", file=str(path))
    return text


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f" at line {mark.line + 1}: {problem}" if mark else f": {problem}"


def with_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `path.to.0.key=value` overrides (values are YAML) to a copy. Raises `UserError` for a path that is not."""
    values = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UserError(f"{override!r} must look like path.to.0.key=value", "--set")
        try:
            values.append((path, _plain({"": yaml.load(text, _Loader)})[""]))
        except (yaml.YAMLError, ValueError, TypeError):
            raise UserError(f"the value of {override!r} is not valid YAML", "--set") from None
    try:
        return with_values(content, values)
    except UserError as error:
        raise error.under("--set") from None


def with_values(content: Mapping[str, Any], values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of `content` with `path.to.0.key` set to its value, in order. Raises `UserError` for no such path."""
    changed = _plain(dict(content))
    for path, value in values:
        _assign(changed, path.split("."), deepcopy(value), path)
    return changed


def _assign(place: Any, parts: list[str], value: Any, path: str) -> None:
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(place, list):
            if not (part.isascii() and part.isdecimal()) or int(part) >= len(place):
                raise UserError(f"{path!r}: {part!r} is not an index below {len(place)}")
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            raise UserError(f"{path!r}: {parts[index - 1]!r} is {place!r}, which holds nothing below it")
        if last:
            place[key] = value
        else:
            below = place[key] if isinstance(place, list) else place.setdefault(key, {})
            if isinstance(below, str):  # a block's bare name, which now gets an option
                below = place[key] = {"type": below}
            place = below
