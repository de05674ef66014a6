"""The check that every declared cache entry is used: no channel and no slot is paid for and never read.

A cache is filled by one sequence, then one channel (or one token's slot) of one entry is replaced by what another
sequence left there. Rows are independent, so every replacement is tried in its own row of one batch. The outputs
of the next tokens must change.

Shape letters: N replacement tried, S slot, C channel.
"""

import copy

import torch
from torch import Tensor

from doge_lab.block import SequenceBlock
from doge_lab.cache import Fixed, LayerCache, PerToken
from doge_lab.testing.case import NOTICEABLE, Case, check, in_chunks, require

CONTEXTS = 8
"""Sequences tried before a channel counts as unread: a sparse reader skips some of them each time."""
NEXT = 4
"""Tokens whose outputs are looked at."""


@check(kind="sequence")
def cache_entries_used(case: Case) -> None:
    """Every declared cache entry is written and read, in every channel, and in every slot of a window."""
    block = case.trained()
    with torch.no_grad():
        for name, entry in block.cache_spec().items():
            window = entry.window if isinstance(entry, PerToken) else None
            length = max(40, min(window or 0, case.reach) + 9)
            try:
                _require_used(case, block, name, entry, length)
            except AssertionError:  # what is written or read seldom shows in a longer past
                _require_used(case, block, name, entry, 4 * length)


def _require_used(case: Case, block: SequenceBlock, name: str, entry: Fixed | PerToken, length: int) -> None:
    window = entry.window if isinstance(entry, PerToken) else None
    _, filled, _ = _context(case, block, length, 0)
    size = _by_channel(filled, name).shape
    untouched = block.init_cache(batch=1, capacity=length + NEXT)
    require(
        not torch.equal(filled[name].cpu(), untouched[name]) or not filled[name].is_floating_point(),
        f"cache entry {name!r} is declared and never written",
    )
    # channels of an index share their meaning (a pick): one that happens to stay equal is no waste
    channels = _sample(size[2], 256 if case.full else 64)
    unread = _without_effect(case, block, name, length, [(slice(None), channel) for channel in channels])
    wasteful = len(unread) == len(channels) if not filled[name].is_floating_point() else bool(unread)
    require(not wasteful, f"cache entry {name!r}: {len(unread)} of {len(channels)} channels looked at are never read")
    if window is not None and window <= case.reach:
        slots = sorted({0, 1, *_sample(window, 64 if case.full else 24)} & set(range(window)))
        unread = _without_effect(case, block, name, length, [(slot, slice(None)) for slot in slots])
        # the oldest token of a full window leaves when the next one comes
        require(
            len(unread) <= 1,
            f"cache entry {name!r} has a window of {window}; {len(unread)} of {len(slots)} tokens in it are never read",
        )
    elif isinstance(entry, PerToken):
        slots = list(range(10))
        unread = _without_effect(case, block, name, length, [(slot, slice(None)) for slot in slots])
        require(len(unread) < len(slots), f"cache entry {name!r} keeps every token, but the oldest are never read")


def _without_effect(
    case: Case, block: SequenceBlock, name: str, length: int, places: list[tuple[slice | int, slice | int]]
) -> list[tuple[slice | int, slice | int]]:
    """The places (slot, channel) of an entry whose content never reaches the next outputs."""
    left = places
    for context in range(CONTEXTS):
        if not left:
            break
        following, cache, donor = _context(case, block, length, context)
        # the last row stays as it was, to compare with
        cache.select_rows(torch.zeros(len(left) + 1, dtype=torch.long))
        values, others = _by_channel(cache, name), _by_channel(donor, name)
        for row, (slot, channel) in enumerate(left):
            values[row, slot, channel] = others[0, slot, channel]
        y = in_chunks(block, following.expand(len(left) + 1, -1, -1), [1] * NEXT, cache=cache)
        effect = (y[:-1] - y[-1:]).abs().amax(dim=(1, 2)) / (y.abs().max() or 1.0)
        left = [place for place, moved in zip(left, effect.tolist(), strict=True) if not moved > NOTICEABLE]
    return left


def _context(case: Case, block: SequenceBlock, length: int, seed: int) -> tuple[Tensor, LayerCache, LayerCache]:
    """The next tokens of a sequence, the cache that its first `length` tokens left, and that of another sequence."""
    caches = []
    for kind in (0, 1):
        x = case.input(1, length + NEXT, seed=50 + 2 * seed + kind)
        cache = block.init_cache(batch=1, capacity=length + NEXT)
        seen = length - 7 * kind  # the other is shorter: a count of tokens is the same in all of one length
        in_chunks(block, x[:, :seen], [seen], cache=cache)
        caches.append(cache)
    return case.input(1, NEXT, seed=90 + seed), copy.deepcopy(caches[0]), caches[1]


def _by_channel(cache: LayerCache, name: str) -> Tensor:
    """An entry as a view [N, S, C]; a Fixed entry has one slot."""
    tensor = cache[name]
    slots = tensor.shape[1] if isinstance(cache.spec[name], PerToken) else 1
    return tensor.view(tensor.shape[0], slots, -1)


def _sample(size: int, most: int) -> list[int]:
    if size <= most:
        return list(range(size))
    return sorted(torch.randperm(size, generator=torch.Generator().manual_seed(0))[:most].tolist())
