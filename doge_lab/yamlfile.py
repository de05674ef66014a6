"""Reading YAML and JSON files, and overriding what they say, with one clear line when a file cannot be used."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from doge_lab.errors import UserError, shortened
from doge_lab.plaindata import from_json, from_yaml, plain

LARGEST_BYTES = 500_000


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises `UserError` naming the file and the line."""
    return parse_mapping(_read_text(path), str(path))


def parse_mapping(text: str, file: str) -> dict[str, Any]:
    """The mapping that `text` writes, the content of `file`. Raises `UserError` naming the file and the line."""
    try:
        content = from_json(text) if file.endswith(".json") else from_yaml(text)
        if content is None:
            raise UserError("the file is empty")
        if not isinstance(content, dict):
            raise UserError(f"the file must hold a mapping such as `model: ...`, not a {type(content).__name__}")
    except UserError as error:
        raise UserError(error.message, file=file) from None
    return content


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError("this is a folder; name a YAML or JSON file in it", file=str(path))
        with path.open("rb") as file:
            written = file.read(LARGEST_BYTES + 1)  # a device or a pipe does not say how much it holds
        text = written.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such file", file=str(path)) from None
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from None
    if len(written) > LARGEST_BYTES:
        raise UserError(f"the file is larger than {LARGEST_BYTES:,} bytes, which no configuration is", file=str(path))
    if "\0" in text:
        raise UserError("this is not a text file in UTF-8", file=str(path))
    return text


def with_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `path.to.0.key=value` overrides (values are YAML) to a copy. Raises `UserError` for a path that is not."""
    values = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UserError(f"{shortened(override)} must look like path.to.0.key=value", "--set")
        try:
            values.append((path, from_yaml(text)))
        except UserError as error:
            raise UserError(f"{shortened(override)}: {error.message}", "--set") from None
    try:
        return with_values(content, values)
    except UserError as error:
        raise error.under("--set") from None


def with_values(content: Mapping[str, Any], values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of `content` with `path.to.0.key` set to its value, in order. Raises `UserError` for no such path."""
    changed = plain(dict(content))
    for path, value in values:
        _assign(changed, path.split("."), deepcopy(value), shortened(path))
    copied: dict[str, Any] = plain(changed)
    return copied


def _assign(place: Any, parts: list[str], value: Any, path: str) -> None:
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(place, list):
            key: Any = next((number for number in range(len(place)) if str(number) == part), None)
            if key is None:
                raise UserError(f"{path}: {shortened(part)} is not an index below {len(place)}")
        elif isinstance(place, dict):
            key = part
        else:
            before = shortened(parts[index - 1])
            raise UserError(f"{path}: {before} is {shortened(place)}, which holds nothing below it")
        if last:
            place[key] = value
        else:
            below = place[key] if isinstance(place, list) else place.setdefault(key, {})
            if isinstance(below, str):  # a block's bare name, which now gets an option
                below = place[key] = {"type": below}
            place = below
