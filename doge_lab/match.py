"""Fair sizes: solve one free width so that a cost meets its target.

What a sequence block saves, the state block's width takes up. The width is one integer that several options may
share; its lattice is whatever the blocks accept (an MLP's any width, a CDMoE's squares of experts, a d_model that
divides into heads), found by asking them.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from doge_lab import registry
from doge_lab.cost import cost_of
from doge_lab.errors import UserError, shortened
from doge_lab.model import ModelConfig
from doge_lab.strict import Strict, validate

LARGEST_WIDTH = 2**20
_LATTICE_GAP = 4096
"""Widths tried in a row before the lattice is taken to have ended: squares are this far apart at 4 million."""


class MatchConfig(Strict):
    """What to match (exactly one of the three targets) and by which width."""

    params: PositiveInt | None = None
    """All parameters."""
    active_params: PositiveInt | None = None
    """Parameters that one token touches."""
    cache_bytes: PositiveInt | None = None
    """Cache of one row, in bytes, at `context`."""
    context: PositiveInt | None = None
    """Tokens at which cache bytes are counted; the longest that the tasks score when left out."""
    width: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Options that share the solved value, such as `layers.1.state.d_hidden` or `d_model`; when left out, the width
    of every state block that leaves it open, or else d_model."""
    tolerance: PositiveFloat = Field(default=0.01, lt=1)
    """Allowed distance from the target, as a share of it; half a step of the width is always allowed."""

    @model_validator(mode="after")
    def _one_target(self) -> "MatchConfig":
        if len(self.targets) != 1:
            raise UserError(f"match needs exactly one of params, active_params, cache_bytes; got {len(self.targets)}")
        return self

    @property
    def targets(self) -> dict[str, int]:
        written = {name: getattr(self, name) for name in ("params", "active_params", "cache_bytes")}
        return {name: value for name, value in written.items() if value is not None}


def solve(config: ModelConfig, match: MatchConfig, *, context: int) -> ModelConfig:
    """`config` with its free width set so that the matched cost is within tolerance or half a step of the target.

    Raises `UserError` with the reachable range otherwise.
    """
    ((target_name, target),) = match.targets.items()
    paths = list(match.width) if match.width else _open_widths(config)
    written = config.model_dump(mode="json")
    at = match.context or context

    def configured(width: int) -> ModelConfig:
        return validate(ModelConfig, _with_width(written, paths, width))

    def cost(width: int) -> int:
        return int(getattr(cost_of(configured(width), at), target_name))

    width = _Lattice(cost).nearest(target)
    reached = cost(width)
    if abs(reached - target) <= match.tolerance * target or _bracketed(cost, width, reached, target):
        return configured(width)
    largest = _Lattice(cost).last()
    raise UserError(
        f"no width of {', '.join(paths)} gives {target_name}={target:,}: "
        f"it reaches {cost(_Lattice(cost).first()):,} to {cost(largest):,}; change the target or what is fixed",
        "match",
    )


class _Lattice:
    """The widths at which a cost, increasing in the width, can be computed."""

    def __init__(self, cost: Callable[[int], int]) -> None:
        self.cost = cost

    def first(self) -> int:
        width = self.at_or_above(1)
        if width is None:
            self.cost(1)  # raises the reason
            raise UserError("no width is accepted", "match")
        return width

    def last(self) -> int:
        width = self.first()
        while (higher := self.at_or_above(2 * width)) is not None and higher <= LARGEST_WIDTH:
            width = higher
        return width

    def nearest(self, target: int) -> int:
        """The width whose cost is nearest to `target`."""
        low = self.first()
        high: int | None = low
        while high is not None and high < LARGEST_WIDTH and self.cost(high) < target:
            low, high = high, self.at_or_above(2 * high)
        if high is None:
            high = self._last_above(low)
        while (middle := self._between(low, high)) is not None:
            low, high = (middle, high) if self.cost(middle) < target else (low, middle)
        return min((low, high), key=lambda width: abs(self.cost(width) - target))

    def at_or_above(self, width: int) -> int | None:
        return next((w for w in range(width, width + _LATTICE_GAP) if self._accepts(w)), None)

    def _between(self, low: int, high: int) -> int | None:
        """An accepted width strictly between two, as near to their middle as the lattice allows."""
        middle = (low + high) // 2
        above = next((w for w in range(middle, high) if w > low and self._accepts(w)), None)
        return above or next((w for w in range(middle - 1, low, -1) if self._accepts(w)), None)

    def _last_above(self, low: int) -> int:
        return next((w for w in range(low + _LATTICE_GAP, low, -1) if self._accepts(w)), low)

    def _accepts(self, width: int) -> bool:
        try:
            self.cost(width)
        except UserError:
            return False
        return True


def _bracketed(cost: Callable[[int], int], width: int, reached: int, target: int) -> bool:
    """True when the target lies between this width's cost and its neighbour's: half a step away at most."""
    lattice = _Lattice(cost)
    if reached < target:
        above = lattice.at_or_above(width + 1)
        return above is not None and cost(above) >= target
    below = next((w for w in range(width - 1, max(0, width - _LATTICE_GAP), -1) if lattice._accepts(w)), None)
    return below is not None and cost(below) <= target


def _open_widths(config: ModelConfig) -> list[str]:
    """Paths of the state blocks' width options that were left out."""
    paths: list[str] = []
    written: list[str] = []
    for index, layer in enumerate(config.layers):
        option = registry.get("state", layer.state.type).width_option
        if option is not None:
            path = f"layers.{index}.state.{option}"
            (paths if getattr(layer.state.options, option) is None else written).append(path)
    if not paths and written:
        raise UserError(f"nothing is left free: {', '.join(written)} is written; leave it out or name match.width")
    return paths or ["d_model"]


def _with_width(written: Mapping[str, Any], paths: list[str], width: int) -> dict[str, Any]:
    changed = deepcopy(dict(written))
    for path in paths:
        *parents, option = path.split(".")
        place: Any = changed
        try:
            for parent in parents:
                place = place[int(parent) if isinstance(place, list) else parent]
            place[option] = width
        except (KeyError, IndexError, ValueError, TypeError):
            raise UserError(f"{shortened(path)} is not a place in the model", "match.width") from None
    return changed
