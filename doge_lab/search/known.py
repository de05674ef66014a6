"""`search.first`: configurations that the user wants to see trained before the sampler draws its own."""

from collections.abc import Iterable, Mapping
from typing import Any

from doge_lab.errors import UserError, did_you_mean
from doge_lab.search.space import Hole, Scalar, fill


def check_known(space: Mapping[str, Any], known: Iterable[Mapping[str, Scalar]]) -> None:
    """Raise `UserError` for a name that the configuration does not meet, or a value outside its hole."""
    for index, given in enumerate(known):
        met: dict[str, Hole] = {}

        def draw(
            name: str, hole: Hole, given: Mapping[str, Scalar] = given, met: dict[str, Hole] = met, index: int = index
        ) -> Scalar:
            met[name] = hole
            if name not in given:
                return hole.labels[0] if hole.kind == "choice" else _number(hole.low, hole)
            return _checked(name, hole, given[name], f"search.first.{index}")

        fill(space, draw)
        for name in given:
            if name not in met:
                raise UserError(f"{name!r} is not drawn{did_you_mean(name, list(met))}", f"search.first.{index}")


def _checked(name: str, hole: Hole, value: Scalar, path: str) -> Scalar:
    if hole.kind == "choice":
        if not any(value == label and type(value) is type(label) for label in hole.labels):
            raise UserError(f"{name} is one of {list(hole.labels)}, not {value!r}", path)
        return value
    whole = hole.kind == "int"
    fits = isinstance(value, int) or (not whole and isinstance(value, float))
    if not fits or isinstance(value, bool) or not hole.low <= float(value or 0) <= hole.high:
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{name} is {kind} from {hole.low:g} to {hole.high:g}, not {value!r}", path)
    if whole and (float(value or 0) - hole.low) % hole.step:
        raise UserError(f"{name} starts at {hole.low:g} and goes in steps of {hole.step}; {value!r} is none", path)
    return value


def _number(value: float, hole: Hole) -> Scalar:
    return int(value) if hole.kind == "int" else value
