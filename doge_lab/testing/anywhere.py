"""The check of what holds everywhere: in situations drawn from a seed the block keeps its first promises.

Shape letters: B batch row, T token, D d_model.
"""

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from doge_lab.cache import nbytes, storage_bytes
from doge_lab.testing.case import SPLIT_TOLERANCE, TOLERANCE, Case, check, close, output, require
from doge_lab.testing.situation import Situation, draw, reseed

SEED = 7
"""Where the situations come from; the message of a failure names the situation's own."""
ROUNDING = 0.3
"""Allowed share of the output's norm where numbers are coarse and the order of the arithmetic changes."""
SAME_SHAPE = 1e-3
"""The same, relative to the largest output, where other tokens change and the arithmetic does not."""

SAME_MODE = 3e-2
"""The same, where gradients are recorded or not."""


@check()
def anywhere(case: Case) -> None:
    """At layers, sizes, types, modes and weights drawn from a seed nothing leaks, calls repeat and splits agree."""
    for situation in draw(SEED, 40 if case.full else 8, longest=700 if case.full else 300):
        unable = situation.precision == "float64" and case.widest != torch.float64
        look(case, dataclasses.replace(situation, precision="float32") if unable else situation)


def look(case: Case, situation: Situation) -> None:
    """Raise `AssertionError` that ends with the situation, unless the block keeps its first promises in it."""
    with explained(situation):
        block, x = situation.block(case), situation.input(case)
        with situation.mode():
            y = _require_repeatable(block, x, situation)
            _require_no_leak(case, situation, block, x, y)
            if case.is_sequence and not situation.training:
                _require_splits(situation, block, x, y)
                _require_padding(case, situation, block, x, y)
        if y.requires_grad:
            _require_own_gradient(block, x, situation)


@contextlib.contextmanager
def explained(situation: object) -> Iterator[None]:
    """Say where it happened, whatever is raised."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error} ({situation})") from error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {str(error).split(chr(10))[0]} ({situation})") from error


def _run(block: Any, x: Tensor, mask: Tensor | None = None, seed: int = 0) -> Tensor:
    reseed(seed)  # dropout, if any, drops the same each time
    return output(block, x, mask)


def _require_repeatable(block: Any, x: Tensor, situation: Situation) -> Tensor:
    y = _run(block, x)
    require(y.isfinite().all(), "the output is not finite")
    again = _run(block, x, seed=0 if block.training else 1)
    close(again, y, "two calls with the same input differ", tolerance=TOLERANCE)
    with torch.no_grad():
        # with gradients PyTorch may choose another kernel
        allowed = SAME_MODE if situation.rounds else TOLERANCE
        close(_run(block, x), y, f"the output differs between {situation.grad} and no_grad", allowed)
    return y


def _require_no_leak(case: Case, situation: Situation, block: Any, x: Tensor, y: Tensor) -> None:
    rng, other = random.Random(situation.seed), case.input(len(x), x.shape[1], seed=situation.seed + 1).to(x.dtype)
    tight = SAME_SHAPE if situation.rounds else TOLERANCE
    if len(x) > 1:
        row = rng.randrange(len(x))
        rest = torch.arange(len(x)) != row
        changed = torch.where(rest[:, None, None], x, 3 * other)
        close(_run(block, changed)[rest], y[rest], f"changing row {row} changed another row", tight, whole=y)
        alone = slice(row, row + 1)
        _agree(situation, _run(block, x[alone]), y[alone], "a row alone differs from the row in a batch")
    if x.shape[1] == 1:
        return
    t = rng.randrange(1, x.shape[1])
    if case.is_sequence:
        changed = torch.cat([x[:, :t], 3 * other[:, t:]], dim=1)
        promise = f"changing token {t} and later changed an earlier token's output"
        close(_run(block, changed)[:, :t], y[:, :t], promise, tight, whole=y)
        _agree(situation, _run(block, x[:, :t]), y[:, :t], f"the first {t} tokens alone give other outputs")
    else:
        changed = torch.cat([x[:, :t], 3 * other[:, t : t + 1], x[:, t + 1 :]], dim=1)
        rest = torch.arange(x.shape[1]) != t
        promise = f"changing token {t} changed another token"
        close(_run(block, changed)[:, rest], y[:, rest], promise, tight, whole=y)
        alone = slice(t, t + 1)
        _agree(situation, _run(block, x[:, alone]), y[:, alone], "a token alone differs from the token in its row")


def _agree(situation: Situation, actual: Tensor, expected: Tensor, promise: str) -> None:
    """As near as the precision allows where the order of the arithmetic may change."""
    if not situation.rounds:
        close(actual, expected, promise, SPLIT_TOLERANCE)
        return
    require(actual.shape == expected.shape, f"{promise}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    # over all tokens: a router may choose otherwise for a few of them
    error = float((actual.float() - expected.float()).norm() / (expected.float().norm() or 1.0))
    require(error <= ROUNDING, f"{promise}: off by {error:.2g} of the output (allowed: {ROUNDING:g})")


def _require_splits(situation: Situation, block: Any, x: Tensor, y: Tensor) -> None:
    rng = random.Random(situation.seed)
    for _ in range(2):
        chunks = _chunks(x.shape[1], rng)
        cache = _cache(situation, block, x)
        in_calls = _in_calls(block, x, chunks, None, cache)
        _agree(situation, in_calls, y, f"{len(chunks)} calls with a cache differ from one")
        declared = len(x) * nbytes(block.cache_spec(), x.shape[1] + situation.room, _cache_dtype(situation))
        held = storage_bytes(cache.tensors.values())
        require(declared == held, f"declares {declared} bytes of cache, holds {held}")


def _chunks(length: int, rng: random.Random) -> list[int]:
    """A prompt, then a few short calls, single tokens among them."""
    left = length - (first := rng.randint(1, length))
    chunks = [first]
    while left > 0:
        chunks.append(rng.choice([1, 1, min(left, 2), min(left, rng.randint(1, max(1, length // 3)))]))
        left -= chunks[-1]
        if len(chunks) == 12 and left:
            chunks.append(left)
            left = 0
    return chunks


def _in_calls(block: Any, x: Tensor, chunks: list[int], mask: Tensor | None, cache: Any) -> Tensor:
    """Like `case.in_chunks`; what a block does to its input, or hands back of it, shows here."""
    outputs = []
    for chunk in x.split(chunks, dim=1):
        given, seen = chunk.clone(), cache.position
        kept, end = given.clone(), seen + chunk.shape[1]
        y, _ = block(given, None if mask is None else mask[:, :end], cache)
        require(torch.equal(given, kept), "the block writes to its input when it is given a cache")
        cache.position = end
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def _cache_dtype(situation: Situation) -> torch.dtype:
    return torch.bfloat16 if situation.rounds else situation.dtype


def _cache(situation: Situation, block: Any, x: Tensor, extra: int = 0) -> Any:
    capacity = x.shape[1] + situation.room + extra
    return block.init_cache(batch=len(x), capacity=capacity, dtype=_cache_dtype(situation))


def _require_padding(case: Case, situation: Situation, block: Any, x: Tensor, y: Tensor) -> None:
    """Up to as much padding in front of a row as it has tokens."""
    rng = random.Random(situation.seed)
    pads = [rng.randint(0, x.shape[1]) for _ in range(len(x))]
    total = x.shape[1] + max(pads)
    padded = 20 * case.input(len(x), total, seed=situation.seed + 2).to(x.dtype)
    mask = torch.zeros(len(x), total, dtype=torch.bool)
    for row, pad in enumerate(pads):
        # behind the tokens the row is padded again, up to the longest
        padded[row, pad : pad + x.shape[1]] = x[row]
        mask[row, pad : pad + x.shape[1]] = True

    def real(outputs: Tensor) -> Tensor:
        return torch.stack([outputs[row, pad : pad + x.shape[1]] for row, pad in enumerate(pads)])

    _agree(situation, real(_run(block, padded, mask)), y, f"{max(pads)} padding tokens change what real tokens give")
    chunks = _chunks(total, rng)
    actual = real(_in_calls(block, padded, chunks, mask, _cache(situation, block, padded)))
    _agree(situation, actual, y, f"{max(pads)} padding tokens change what real tokens give in {len(chunks)} calls")


def _require_own_gradient(block: Any, x: Tensor, situation: Situation) -> None:
    """The gradient of a token's output reaches no later token, no other row, and what it reaches is finite."""
    rng = random.Random(situation.seed)
    row, t = rng.randrange(len(x)), rng.randrange(x.shape[1])
    leaf = x.clone().requires_grad_()
    with situation.mode():
        y = _run(block, leaf)
    weights = torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(0)).to(y.dtype)
    first = 0 if block.kind == "sequence" else t
    (gradient,) = torch.autograd.grad((y[row] * weights)[first : t + 1].sum(), leaf)
    require(gradient.isfinite().all(), "the input's gradient is not finite")
    own = torch.zeros(x.shape[:2], dtype=torch.bool)
    own[row, first : t + 1] = True
    largest = gradient.abs().max().item() or 1.0
    leak = float(gradient[~own].abs().max()) / largest if not own.all() else 0.0
    require(leak <= TOLERANCE, f"the output of token {t} has a gradient ({leak:.2g}) from a later token or another row")
