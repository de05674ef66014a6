"""YAML and JSON text as plain data: mappings by text, lists, text, numbers, bools, null; nothing shared, no circle.

What would take minutes or gigabytes is refused before it is built: aliases that multiply, endless nesting, numbers of
thousands of digits. Everything that a user writes is read here: files, and the values of `--set`.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml

from doge_lab.errors import UserError, shortened

MOST_VALUES = 20_000
DEEPEST = 50
LONGEST_NUMBER = 40
"""Digits."""
_TEXT_PER_VALUE = 100
"""Characters of a text that weigh as much as a value."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|.*:.*")
"""What YAML 1.1 takes for a number and nobody means: `010` is 8 (base 8) and `1:30` is 90 (base 60)."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, less what JSON cannot say: dates are text, sets and binary data are refused.

    A key written twice is an error rather than a silent choice; one that takes the place of a merged key is not.
    """

    yaml_constructors = {  # noqa: RUF012 - as PyYAML declares it
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _PLAIN
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in known if tag.removeprefix(_TAG) in (*_PLAIN, "merge")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.composed = self.depth = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of what is written without one; as in YAML 1.2, nothing is a number in base 8 or 60."""
        tag: str = super().resolve(kind, value, implicit)
        number = tag.removeprefix(_TAG) in ("int", "float")
        return f"{_TAG}str" if number and _OTHER_BASE.fullmatch(value) else tag

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self.composed, self.depth = self.composed + 1, self.depth + 1
        if self.composed > MOST_VALUES:
            raise _too_many()
        if self.depth > DEEPEST + 1:  # a scalar may lie within so many
            raise _too_deep()
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            if key.value in seen:
                raise _fault(f"{shortened(key.value)} is written twice", key)
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "int" and len(node.value) > LONGEST_NUMBER:
            raise _fault(_too_long(node.value), node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError):  # what PyYAML raises for `!!bool maybe` or `!!int ""`
            raise _fault(f"{shortened(node.value)} is no {kind}", node) from None


def from_yaml(text: str) -> Any:
    """What the text of one YAML document writes. Raises `UserError`, with the line."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _weigh(node, _below_node, {})
        return plain(loader.construct_document(node)) if node else None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML{_place(error)}") from None


def from_json(text: str) -> Any:
    """What JSON text writes. Raises `UserError`, with the line."""
    try:
        return plain(json.loads(text, object_pairs_hook=_unique, parse_int=_int, parse_constant=_refuse))
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON at line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise _too_deep() from None


def plain(content: Any) -> Any:
    """A copy of plain data in which nothing is shared. Raises `UserError` where it is too large or too deep."""
    _weigh(content, _below_value, {})
    try:
        return json.loads(json.dumps(content, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise UserError("holds half a character (a lone surrogate), which is no text") from None
    except TypeError:
        raise UserError("the names in a mapping must be text") from None


def _weigh(
    part: Any, below: Callable[[Any], Iterable[Any] | None], known: dict[int, tuple[int, int] | None], depth: int = 0
) -> tuple[int, int]:
    """Values in `part` with every alias written out, and its depth; what is shared is weighed once, as in `known`.

    `below` gives the parts of a mapping or list, None for a scalar.
    """
    if depth > DEEPEST:
        raise _too_deep()
    parts = below(part)
    if parts is None:
        text = getattr(part, "value", part)
        return 1 + (len(text) // _TEXT_PER_VALUE if isinstance(text, str) else 0), 0
    if id(part) not in known:
        known[id(part)] = None
        weights = [_weigh(each, below, known, depth + 1) for each in parts]
        known[id(part)] = 1 + sum(weight for weight, _ in weights), 1 + max((deep for _, deep in weights), default=0)
    found = known[id(part)]
    if found is None:
        raise UserError("an alias in it refers to itself")
    if found[0] > MOST_VALUES:
        raise _too_many()
    if depth + found[1] > DEEPEST:
        raise _too_deep()
    return found


def _below_node(node: yaml.Node) -> Iterable[yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else None


def _below_value(value: Any) -> Iterable[Any] | None:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, where a key written twice is an error as it is in YAML."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UserError(f"{shortened(name)} is written twice")
        found[name] = value
    return found


def _int(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise UserError(_too_long(digits))
    return int(digits)


def _refuse(word: str) -> None:
    raise UserError(f"{word} is no JSON; write null, or a finite number")


def _too_long(digits: str) -> str:
    return f"a number of {len(digits):,} digits, {shortened(digits, 20)}; no option takes more than {LONGEST_NUMBER}"


def _too_many() -> UserError:
    return UserError(f"holds more than {MOST_VALUES:,} values, aliases written out, which no configuration does")


def _too_deep() -> UserError:
    return UserError(f"nested too deeply: more than {DEEPEST} mappings and lists within each other")


def _fault(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f" at line {mark.line + 1}: {problem}" if mark else f": {problem}"
