"""Checks of what a sequence block remembers: any split equals one call, and memory is what was declared.

Shape letters: B batch row, T token, D d_model.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from doge_lab.block import SequenceBlock
from doge_lab.cache import LayerCache, nbytes, storage_bytes
from doge_lab.testing.attributes import all_attributes, same
from doge_lab.testing.case import SPLIT_TOLERANCE, Case, check, close, in_chunks, output, require

COARSE = 3e-2
"""Largest change of the output, relative to its norm, by a cache in bfloat16."""


@check(kind="sequence")
def splits_equal_whole(case: Case) -> None:
    """Any split of a sequence into calls with a cache gives what one call without a cache gives."""
    block = case.trained()
    with torch.no_grad():
        for length in sorted({17, case.long_length}):
            x = case.input(length=length)
            whole = output(block, x)
            for chunks in _splits(case, length):
                for room in (0, 5):
                    actual = in_chunks(block, x, chunks, room=room)
                    close(actual, whole, f"calls of {_shortened(chunks)} tokens differ from one call", SPLIT_TOLERANCE)
            chunks = _fixed(length, 6)
            coarse = block.init_cache(batch=3, capacity=length, dtype=torch.bfloat16)
            error = float((in_chunks(block, x, chunks, cache=coarse) - whole).norm() / (whole.norm() or 1.0))
            require(error <= COARSE, f"a cache in bfloat16 changes the output by {error:.2g} (allowed: {COARSE:g})")


def _splits(case: Case, length: int) -> list[list[int]]:
    """One call, token by token, fixed and random chunks, and chunks that meet a cache filled to around a window."""
    rng, one_by_one = random.Random(0), min(length, 20)
    splits = [[length], [length - one_by_one] * (length > one_by_one) + [1] * one_by_one, _fixed(length, 5)]
    filled = {7, *(min(window, case.reach) + offset for window in case.windows for offset in (-1, 0, 1))}
    for first in sorted(first for first in filled if 0 < first < length - 4):
        splits.append([first, 1, 3, length - first - 4][: 3 + (length - first > 4)])
        splits.append([first, length - first])
    splits += [_random(length, rng) for _ in range(12 if case.full else 2)]
    return splits


def _fixed(length: int, size: int) -> list[int]:
    return [size] * (length // size) + [length % size] * (length % size > 0)


def _random(length: int, rng: random.Random) -> list[int]:
    chunks: list[int] = []
    while (left := length - sum(chunks)) > 0:
        chunks.append(rng.randint(1, min(left, max(4, length // 3))))
    return chunks


def _shortened(chunks: list[int]) -> str:
    text = [str(chunk) for chunk in chunks]
    return " + ".join(text if len(text) <= 6 else [*text[:4], "...", text[-1]])


@check(kind="sequence")
def cache_bytes(case: Case) -> None:
    """The bytes declared by `cache_spec` are the bytes that a used cache holds on storage, at any length and type."""
    block = case.trained()
    lengths = {1, 8, 17, *(max(1, window + offset) for window in case.windows for offset in (-1, 0, 1, 9))}
    dtypes = [torch.float32, torch.bfloat16]
    if case.full:
        lengths |= {2, 3, 33, 64, 257}
        dtypes.append(torch.float16)
    for dtype in dtypes:
        require_bytes(block, case, sorted(length for length in lengths if length <= case.reach + 9), dtype)


def require_bytes(block: SequenceBlock, case: Case, lengths: Sequence[int], dtype: torch.dtype) -> None:
    """Raise `AssertionError` where a used cache holds other bytes, or under other names, than `cache_spec` declares."""
    for length in lengths:
        cache = block.init_cache(batch=3, capacity=length, dtype=dtype)
        require(cache.tensors.keys() == block.cache_spec().keys(), "init_cache allocates other entries than declared")
        x = case.input(length=length)
        with torch.no_grad():
            in_chunks(block, x, _fixed(length, max(1, length // 2)), cache=cache)
        for name in cache.tensors.keys() - block.cache_spec().keys():
            raise AssertionError(f"the cache holds {name!r}, which cache_spec does not declare")
        declared, held = 3 * nbytes(block.cache_spec(), length, dtype), storage_bytes(_reachable(cache))
        require(
            declared == held,
            f"declares {declared} bytes for 3 rows of {length} tokens in {_short(dtype)}, holds {held}",
        )


def _reachable(value: Any) -> list[Tensor]:
    """Every tensor held by a cache, also under names that `LayerCache` does not know."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _reachable(item)]
    if isinstance(value, list | tuple | set):
        return [tensor for item in value for tensor in _reachable(item)]
    return _reachable(vars(value)) if isinstance(value, LayerCache) else []


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@check(kind="sequence")
def rows_reorder(case: Case) -> None:
    """After `select_rows` every row goes on as the row it was taken from: beam search, or one prompt many times."""
    block, rows = case.trained(), torch.tensor([2, 0, 0, 1])
    for length in sorted({17, *(min(window, case.reach) + 9 for window in case.windows)}):
        x = case.input(length=length)
        with torch.no_grad():
            caches = [block.init_cache(batch=3, capacity=length) for _ in range(2)]
            for cache in caches:
                in_chunks(block, x[:, :-6], [length - 6], cache=cache)
            caches[1].select_rows(rows)
            expected = in_chunks(block, x[:, -6:], [1, 5], cache=caches[0])
            actual = in_chunks(block, x[rows, -6:], [1, 5], cache=caches[1])
        close(actual, expected[rows], "rows reordered by select_rows do not go on as before")


@check()
def memory_only_in_cache(case: Case) -> None:
    """Nothing is remembered outside the cache: other calls in between change neither the block nor its output."""
    block, x, other = case.trained(), case.input(), case.input(seed=2)
    with torch.no_grad():
        before = all_attributes(block)
        y = output(block, x)
        output(block, other)
        close(output(block, x), y, "the same input gives another output after a call with other inputs")
        if case.is_sequence:
            parts = [6, 6, 5]
            alone = in_chunks(block, x, parts)
            caches = [block.init_cache(batch=3, capacity=17) for _ in range(2)]
            outputs = []
            for part, other_part in zip(x.split(parts, 1), other.split(parts, 1), strict=True):
                outputs.append(output(block, part, None, caches[0]))
                output(block, other_part, None, caches[1])
            close(torch.cat(outputs, 1), alone, "two caches used in turn disturb each other")
        after = all_attributes(block)
    for name in sorted(before.keys() | after.keys()):
        require(
            same(before.get(name), after.get(name)),
            f"a call changes {name!r} of the block; memory belongs in the cache",
        )
