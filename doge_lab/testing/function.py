"""Checks that a block does something of its own, and that what it names to be varied varies it.

Shape letters: B batch row, T token, D d_model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from doge_lab.block import Block, SequenceBlock
from doge_lab.errors import UserError, did_you_mean
from doge_lab.testing.case import NOTICEABLE, Case, Skipped, check, fit, in_chunks, output, require


@check()
def computes_something(case: Case) -> None:
    """The output is new memory, and no multiple of the input: a block that only hands its input on is `none`."""
    block, x = case.trained(), case.input()
    if block.is_none:
        return
    with torch.no_grad():
        result = block(x)
        y = result[0] if isinstance(result, tuple) else result
        require(not _shares(y, x), "the output is the input, or a view of it: whoever writes to one changes the other")
        if isinstance(block, SequenceBlock):
            cache = block.init_cache(batch=3, capacity=17)
            y, _ = block(x, None, cache)
            require(not _shares(y, x), "with a cache the output is the input, or a view of it")
            for name, tensor in cache.tensors.items():
                require(not _shares(y, tensor), f"the output is a view of the cache entry {name!r}")
        y = output(block, x)
        factor = (y * x).sum() / x.square().sum()
        rest = float((y - factor * x).abs().max() / y.abs().max().clamp(min=1e-30))
        require(rest > NOTICEABLE, f"the output is {float(factor):.3g} times the input, whatever the input")


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@check()
def width_works(case: Case) -> None:
    """`width_option` names an option, and a larger value gives a larger block: more parameters or more cache."""
    name = case.block.width_option
    if name is None:
        raise Skipped("the block names no width_option")
    fields = case.block.Config.model_fields
    require(name in fields, f"width_option names {name!r}, which is no option{did_you_mean(name, list(fields))}")
    sizes = {}
    for width in (*range(1, 18), 20, 24, 25, 32, 36, 48, 64, 100, 144, 256, 400, 576):
        block = _built({**case.options, name: width}, case)
        if block is not None:
            sizes[width] = (block.num_params(), _cache_numbers(block))
    require(len(sizes) > 1, f"{name} takes fewer than two of the widths tried between 1 and 576")
    for (width, size), (larger, following) in zip(list(sizes.items()), list(sizes.items())[1:], strict=False):
        grows = all(a <= b for a, b in zip(size, following, strict=True))
        require(
            grows, f"{name}={larger} gives a smaller block than {name}={width}: {following[0]} params, not {size[0]}"
        )
    require(len(set(sizes.values())) > 1, f"width_option names {name!r}, which changes neither parameters nor cache")


@check()
def search_space_works(case: Case) -> None:
    """`search_space` names options, with values that they take, and each changes what the block is or learns."""
    fields = case.block.Config.model_fields
    for name, hole in case.block.search_space.items():
        require(name in fields, f"search_space names {name!r}, which is no option{did_you_mean(name, list(fields))}")
        values = [json.loads(value) for value in dict.fromkeys(map(json.dumps, _values(hole)))]
        # an option may rest while another is as it is here
        same = _same_ends(case, case.options, name, values)
        works = same is None or _same_ends(case, {}, name, values) is None
        require(works, f"search_space names {name!r}, of which {same} make one and the same block")


def _same_ends(case: Case, base: Mapping[str, Any], name: str, values: Sequence[Any]) -> tuple[Any, Any] | None:
    """The first and the last of `values` that can be built, if they make the same block of the options `base`."""
    built = [value for value in values if _built({**base, name: value}, case) is not None]
    if len(built) < 2:
        return None
    ends = built[0], built[-1]
    first, last = (_fingerprint(Case(case.block, {**base, name: value}, case.d_model)) for value in ends)
    return ends if first == last else None


def _values(hole: Any) -> Iterator[Any]:
    """Values of a hole of a search space: its choices, or the ends of its range."""
    if not isinstance(hole, Mapping):
        yield hole
        return
    for kind in ("choice", "int", "float"):
        for value in hole.get(kind, ()):
            if not isinstance(value, Mapping):
                yield value


def _built(options: Mapping[str, Any], case: Case) -> Block | None:
    try:
        with torch.device("meta"):
            return Case(case.block, options, case.d_model).build()
    except (UserError, ValueError):
        return None


def _cache_numbers(block: Block) -> int:
    if not isinstance(block, SequenceBlock):
        return 0
    return sum(torch.Size(entry.slots(100)).numel() for entry in block.cache_spec().values())


def _fingerprint(case: Case) -> Any:
    """What tells two configurations apart: size, cost, output at first, else what training makes of it."""
    block = case.build()
    fit(case, block, steps=3)
    with torch.no_grad():
        x = case.input()
        y = in_chunks(block, x, [9, 8]) if isinstance(block, SequenceBlock) else output(block, x)
    loss = None if block.router_stats is None else float(block.router_stats.loss)
    return block.num_params(), _cache_numbers(block), block.flops_per_token(100), y.sum().item(), loss
