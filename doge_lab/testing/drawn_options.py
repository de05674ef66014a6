"""The check of options between those that anybody asked for."""

import math
import random
import typing
from collections.abc import Mapping
from typing import Any

import torch

from doge_lab.errors import UserError
from doge_lab.testing.anywhere import explained, look
from doge_lab.testing.case import Case, check
from doge_lab.testing.costs import require_flops
from doge_lab.testing.memory import require_bytes
from doge_lab.testing.situation import draw

SEED = 13
LARGEST = 100_000
"""Parameters of a block that is still looked at."""
TRIES = 30


@check()
def any_option(case: Case) -> None:
    """With options drawn from a seed, of `search_space` and beyond, the first promises and the costs hold too."""
    situations = draw(SEED, 8)
    for index in range(12 if case.full else 3):
        drawn = _drawn(case, random.Random(100 * SEED + index))
        if drawn is None:
            return
        changed = {k: v for k, v in drawn.options.items() if k not in case.options or case.options[k] != v}
        with explained(f"with {', '.join(f'{name}={value!r}' for name, value in changed.items())}"):
            look(drawn, situations[index % len(situations)])
            block = drawn.trained()
            require_flops(block, [3, 50])
            if drawn.is_sequence:
                require_bytes(block, drawn, [23], torch.bfloat16)


def _drawn(case: Case, rng: random.Random) -> Case | None:
    """The case with some options drawn; None where there is nothing to draw or nothing drawn can be built."""
    fields = case.block.Config.model_fields
    holes = {name: hole for name, hole in case.block.search_space.items() if name in fields}
    whole = {name for name, field in fields.items() if _is_whole_number(field.annotation)}
    for _ in range(TRIES if holes or whole else 0):
        options = dict(case.options)
        for name in fields:
            if rng.random() < 0.6:
                if name in holes:
                    options[name] = _value(holes[name], rng)
                elif name in whole:
                    options[name] = rng.randint(1, 12)
        if options != dict(case.options) and _works(drawn := Case(case.block, options, case.d_model, case.full)):
            return drawn
    return None


def _is_whole_number(annotation: Any) -> bool:
    """True for `int` and what pydantic makes of it, alone or beside None."""
    inner = typing.get_args(annotation)
    return annotation is int or any(
        _is_whole_number(part) for part in inner if typing.get_origin(annotation) is not dict
    )


def _value(hole: Any, rng: random.Random) -> Any:
    """A value of a hole of a search space, which may lie inside another."""
    if not isinstance(hole, Mapping):
        return hole
    if "choice" in hole:
        return _value(rng.choice(list(hole["choice"])), rng)
    if "int" in hole:
        return rng.randint(*hole["int"])
    if "float" in hole:
        low, high = hole["float"]
        return math.exp(rng.uniform(math.log(low), math.log(high))) if hole.get("log") else rng.uniform(low, high)
    return hole


def _works(case: Case) -> bool:
    """Whether the block takes the options, is small enough to look at, and declares no fault with them."""
    try:
        with torch.device("meta"):
            block = case.build()
    except (UserError, ValueError):
        return False
    return block.num_params() <= LARGEST and not block.known_faults()
