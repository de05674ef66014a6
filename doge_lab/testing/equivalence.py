"""Two configurations of one block that must be the same function: another cache, a faster implementation.

With the same weights, f(x; options) = f(x; other), in one call or several, padded or not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from doge_lab.block import Block, SequenceBlock
from doge_lab.testing.case import TOLERANCE, Case, close, in_chunks, output


def check_same_function(
    block: type[Block],
    options: Mapping[str, Any],
    other: Mapping[str, Any],
    *,
    d_model: int = 32,
    lengths: Sequence[int] = (1, 2, 17, 65),
    tolerance: float = TOLERANCE,
) -> None:
    """Raise `AssertionError` unless `block` with `other` options gives what it gives with `options`.

    The weights of the one are loaded into the other. Compared for each length: one call, and for a sequence block
    also calls with a cache (one, token by token, chunks) and left padding; `tolerance` is relative to the largest
    output. What `options` gives in one call without a cache is the definition.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        case = Case(block, dict(options), d_model)
        with torch.enable_grad():
            first = case.trained()
        second = Case(block, dict(other), d_model).build(seed=1)
        second.load_state_dict(first.state_dict())
        for length in lengths:
            x = case.input(length=length)
            expected = output(first, x)
            close(output(second, x), expected, f"{length} tokens in one call differ", tolerance)
            if not isinstance(first, SequenceBlock):
                continue
            for each in (first, second):
                for chunks in _splits(length):
                    promise = f"{length} tokens in {len(chunks)} calls with a cache differ"
                    close(in_chunks(each, x, chunks), expected, promise, tolerance)
            mask = torch.arange(length)[None] >= torch.tensor([0, length // 3, length // 2])[:, None]
            real = mask[..., None]
            padded = output(first, x, mask) * real
            close(output(second, x, mask) * real, padded, f"{length} left-padded tokens differ", tolerance)
            for chunks in _splits(length):
                actual = in_chunks(second, x, chunks, mask) * real
                close(actual, padded, f"{length} left-padded tokens in {len(chunks)} calls differ", tolerance)


def _splits(length: int) -> list[list[int]]:
    thirds = [size for size in (length // 3, 1, length - length // 3 - 1) if size > 0]
    return [[length], [1] * length, thirds]
