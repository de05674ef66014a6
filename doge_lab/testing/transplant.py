"""Checks that what was declared is all there is: it is sent to a fresh process, which has to go on alike.

Memory is what `cache_spec` declares, with the position; knowledge is what `state_dict` saves. Anything else, wherever
it is hidden, stays behind.

Shape letters: B batch row, T token, D d_model.
"""

import random

import torch
from torch import Tensor

from doge_lab.block import SequenceBlock
from doge_lab.testing.case import SPLIT_TOLERANCE, TOLERANCE, Case, check, close, fit, in_chunks, output, require
from doge_lab.testing.fresh import Tensors, fresh_process

NEXT = 6
"""Tokens decoded after a transplant."""


@check(kind="sequence")
def transplant(case: Case) -> None:
    """A fresh process given the saved weights, the declared cache entries and the position alone decodes on alike."""
    rng = random.Random(11)
    places = [(0, 2), *([(1, 3), (2, 7)] if case.full else [])]
    for place in places:
        there = case.at(*place)
        for padded in (False, True):
            _require_same_continuation(there, max(40, there.long_length) + rng.randint(0, 30), padded)


def _require_same_continuation(case: Case, length: int, padded: bool) -> None:
    capacity = length + NEXT
    mask = None
    if padded:
        mask = torch.arange(capacity)[None] >= torch.tensor([0, 9, length // 2])[:, None]

    def decode_on(given: Tensors) -> Tensors:
        block: SequenceBlock = case.build(seed=5)
        case.load(block, _below(given, "weights"))
        cache = block.init_cache(batch=3, capacity=capacity)
        entries = _below(given, "cache")
        require(entries.keys() == cache.tensors.keys(), f"a new cache has entries {list(cache.tensors)}")
        for name, entry in entries.items():
            cache.tensors[name].copy_(entry)
        cache.position = length
        with torch.no_grad():
            return {"y": in_chunks(block, given["following"], [1, 2, NEXT - 3], mask, cache=cache)}

    with fresh_process(decode_on) as elsewhere:
        block = case.trained()
        x = case.input(length=capacity)
        with torch.no_grad():
            cache = block.init_cache(batch=3, capacity=capacity)
            in_chunks(block, x[:, :length], [length - 5, 5], mask, cache=cache)
            entries = {f"cache.{name}": cache.tensors[name].clone() for name in block.cache_spec()}
            weights = {f"weights.{name}": tensor for name, tensor in case.state(block).items()}
            following = x[:, length:]
            y = in_chunks(block, following, [1, 2, NEXT - 3], mask, cache=cache)
        promise = "with the declared cache entries and the position alone a fresh process decodes on otherwise"
        way_out = "what is remembered between calls belongs into an entry of cache_spec"
        try:
            close(elsewhere({**entries, **weights, "following": following})["y"], y, promise, SPLIT_TOLERANCE)
        except AssertionError as error:
            said = str(error) if promise in str(error) else f"{promise}: {error}"
            raise AssertionError(f"{said}; {way_out}") from error


def _below(tensors: Tensors, start: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{start}."): v for k, v in tensors.items() if k.startswith(f"{start}.")}


@check()
def save_load(case: Case) -> None:
    """A trained block, live, gives what a new one gives in a fresh process that loads what it saved."""
    for place in ((0, 2), (1, 3), (3, 4)) if case.full else ((0, 2),):
        there = case.at(*place)
        x = there.input()

        def load_and_run(given: Tensors, there: Case = there, x: Tensor = x) -> Tensors:
            block = there.build(seed=6)
            there.load(block, given)
            with torch.no_grad():
                return {"y": output(block, x), "again": output(block, x)}

        with fresh_process(load_and_run) as elsewhere:
            block = there.build(seed=5)
            # longer and from other numbers than anywhere else: what an earlier training left behind is not the same
            fit(there, block, steps=6, first=40)
            with torch.no_grad():
                y = output(block, x)
            try:
                close(elsewhere(there.state(block))["y"], y, "a saved and loaded block gives another output", TOLERANCE)
            except AssertionError as error:
                raise AssertionError(f"{error}; what training or a seed writes belongs into its state_dict") from error
