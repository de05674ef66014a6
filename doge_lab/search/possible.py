"""What of a space can be drawn, found before the first trial without building or solving anything.

A space is read in parts: every block that a choice may name, and the run around them. Of each part one possible draw
is sought, and around it every value is varied alone. An error that no draw of the other holes repairs, or so much as
changes, is a mistake of the file, unless a rule between options is broken: that is a conflict, and such a draw is
rejected when it is made.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from doge_lab import config
from doge_lab.block import Kind
from doge_lab.config import RunConfig
from doge_lab.errors import Conflict, UserError
from doge_lab.model import BlockRef
from doge_lab.search.space import Hole, Scalar, fill, is_hole, parse_hole, variations

Read = TypeVar("Read")

_log = logging.getLogger("doge_lab")

KINDS: tuple[Kind, ...] = ("sequence", "state")
TRIES = 1000
"""Draws among which a possible one must be: of a space in which none is, a search trains nothing."""
REPAIRS = 100
"""Draws of the other holes that may repair an error."""


class Impossible(Conflict):
    """Every draw of a part breaks a rule between its options."""


def readable(part: Any, read: Callable[[Any], Read]) -> list[Read]:
    """What `read` makes of every alternative of `part`, conflicts left out; never empty.

    Raises `UserError` where no draw is possible, and for an error that no draw of the other holes repairs.
    """
    found = []
    for fixed, filled in variations(part, _possible(part, read)):
        try:
            found.append(read(filled))
        except UserError as error:
            if not (isinstance(error, Conflict) or _is_conflict(error, part, fixed, read)):
                raise
    return found


def _possible(part: Any, read: Callable[[Any], Any]) -> Mapping[str, Scalar]:
    """A draw that can be read. Raises `UserError` where there is none."""
    errors: list[UserError] = []
    for drawn, filled in islice(_draws(part, {}), TRIES):
        try:
            read(filled)
        except UserError as error:
            errors.append(error)
        else:
            return drawn
    first = errors[0]
    alike = all(_text(error) == _text(first) for error in errors)
    said = first.message if alike else f"no draw is possible; the first one: {first.message}"
    raise (Impossible if all(isinstance(error, Conflict) for error in errors) else UserError)(said, first.path)


def _is_conflict(error: UserError, part: Any, fixed: Mapping[str, Scalar], read: Callable[[Any], Any]) -> bool:
    """True where another draw of what is not `fixed` repairs the error, or makes it another one at the same place."""
    for _, filled in islice(_draws(part, fixed), REPAIRS):
        try:
            read(filled)
        except UserError as other:
            if other.path == error.path and _text(other) != _text(error):
                return True
        else:
            return True
    return False


def _text(error: UserError) -> str:
    """The first error alone: how many more there are depends on the other holes."""
    return f"{error.path}: {error.message.partition(' (and ')[0]}"


def _draws(part: Any, fixed: Mapping[str, Scalar]) -> Iterator[tuple[dict[str, Scalar], Any]]:
    """First values, then different draws at random, what is `fixed` excepted; ends when few are new."""
    chance = random.Random(0)
    seen: set[tuple[tuple[str, Scalar], ...]] = set()
    for attempt in range(2 * TRIES):
        drawn: dict[str, Scalar] = {}
        filled = fill(part, _recorded(fixed, drawn, chance if attempt else None))
        if not drawn:
            yield drawn, filled
            return
        if (key := tuple(drawn.items())) not in seen:
            seen.add(key)
            yield drawn, filled


def _recorded(fixed: Mapping[str, Scalar], drawn: dict[str, Scalar], chance: random.Random | None) -> Any:
    def draw(name: str, hole: Hole) -> Scalar:
        first = hole.values[0]
        drawn[name] = fixed[name] if name in fixed else _at_random(hole, chance) if chance else first
        return drawn[name]

    return draw


def _at_random(hole: Hole, chance: random.Random) -> Scalar:
    if hole.kind == "int":
        return chance.randrange(int(hole.low), int(hole.high) + 1, hole.step)
    return chance.choice(hole.values) if hole.kind == "choice" else chance.uniform(hole.low, hole.high)


def read_run(run: Mapping[str, Any]) -> list[RunConfig]:
    """Every alternative of a run with holes, as far as it is possible; of each block one form stands for all.

    Raises `UserError` with the place of what no draw repairs.
    """
    return readable({**run, "model": with_blocks(run.get("model"), "model", [])}, config.parse)


def with_blocks(node: Any, path: str, found: list[list[BlockRef]]) -> Any:
    """The model with each of its blocks read, the first form of each for all; `found` takes every form of each."""
    if is_hole(node):
        hole = parse_hole(node, path)
        choices = list(_those_possible(hole.choices, path, lambda choice: with_blocks(choice, path, found)))
        different = [choice for index, choice in enumerate(choices) if choice not in choices[:index]]
        return {**node, "choice": different} if choices else node
    if isinstance(node, Mapping):
        places = {key: f"{path}.{key}" for key in node}
        return {
            key: _block(key, value, places[key], found) if key in KINDS else with_blocks(value, places[key], found)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [with_blocks(value, f"{path}.{index}", found) for index, value in enumerate(node)]
    return node


def _block(kind: Kind, written: Any, path: str, found: list[list[BlockRef]]) -> BlockRef:
    """The first form of the block written at `path`, which may be a choice of blocks."""

    def read(block: Any) -> list[BlockRef]:
        try:
            return readable(block, lambda filled: BlockRef.parse(kind, filled))
        except UserError as error:
            raise error.under(path) from None

    forms = [form for forms in _those_possible(list(_blocks(written, path)), path, read) for form in forms]
    found.append(forms)
    return forms[0]


def _those_possible(choices: Sequence[Any], path: str, read: Callable[[Any], Read]) -> Iterator[Read]:
    """What `read` makes of each choice; one without a possible draw is said and left out, while others have some."""
    impossible: list[Impossible] = []
    for choice in choices:
        try:
            yield read(choice)
        except Impossible as error:
            impossible.append(error)
    if choices and len(impossible) == len(choices):
        raise impossible[0]
    for each in impossible:
        _warn(path, each.message)


@cache
def _warn(path: str, message: str) -> None:
    """Once, however often the space is read."""
    _log.warning("%s: a choice that will be rejected whenever it is drawn: %s", path, message)


def _blocks(written: Any, path: str) -> Iterator[Any]:
    """Every block that can be chosen."""
    if not is_hole(written):
        yield written
        return
    hole = parse_hole(written, path)
    for choice in hole.choices or (written,):
        yield from _blocks(choice, path) if hole.choices else (choice,)
