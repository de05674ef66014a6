"""A block named in a choice, and nothing more, brings the search space that its author thinks worth searching.

`state: {choice: [glu, {type: moe}]}` is glu in its own search space, and moe with its defaults.
"""

from collections.abc import Mapping
from typing import Any, get_args

from doge_lab import registry
from doge_lab.block import Kind
from doge_lab.errors import UserError


def with_block_spaces(space: Any) -> Any:
    """A copy of the space in which every bare name in a choice of blocks is written out with its options' holes."""
    if isinstance(space, Mapping):
        return {
            key: _chosen(key, value) if key in get_args(Kind) and _is_choice(value) else with_block_spaces(value)
            for key, value in space.items()
        }
    return [with_block_spaces(value) for value in space] if isinstance(space, list) else space


def _is_choice(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("choice"), list)


def _chosen(kind: Kind, hole: Mapping[str, Any]) -> dict[str, Any]:
    return {**hole, "choice": [_written_out(kind, choice) for choice in hole["choice"]]}


def _written_out(kind: Kind, choice: Any) -> Any:
    if not isinstance(choice, str):
        return choice
    try:
        holes = registry.get(kind, choice).search_space
    except UserError:
        return choice  # whoever reads the space next says so, with the place in the file
    return {"type": choice, **holes} if holes else choice
