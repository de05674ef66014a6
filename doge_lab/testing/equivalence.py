"""One function in two ways: other options of a block (another cache), or other forms of the ops that it calls.

With the same weights, f(x; options) = f(x; other), in one call or several, padded or not.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from doge_lab.block import Block
from doge_lab.ops.dispatch import REFERENCE, using
from doge_lab.testing.case import SPLIT_TOLERANCE, TOLERANCE, Case, close, in_chunks, output


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
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        case = Case(block, dict(options), d_model)
        first, second = case.trained(), Case(block, dict(other), d_model).build(seed=1)
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            _compare(case, (first, nullcontext), (second, nullcontext), lengths, tolerance)


def check_same_forms(
    block: type[Block],
    *,
    d_model: int = 32,
    lengths: Sequence[int] = (1, 2, 17, 65),
    tolerance: float = SPLIT_TOLERANCE,
    **options: Any,
) -> None:
    """Raise `AssertionError` unless `block` gives what it gives with all ops in their reference form.

    Compared as by `check_same_function`, and for each length the gradients of the input and of every parameter;
    there, `tolerance` is relative to the largest of all.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        case = Case(block, options, d_model)
        trained = case.trained()
        forms: tuple[Form, Form] = (trained, lambda: using(REFERENCE)), (trained, nullcontext)
        with torch.no_grad():
            _compare(case, *forms, lengths, tolerance)
        for length in lengths:
            definition, fast = (_gradients(case, form, length) for form in forms)
            for name, expected in definition.items():
                promise = f"the gradients of {name} by {length} tokens differ"
                close(fast[name], expected, promise, tolerance, whole=torch.cat(list(definition.values())))


Form = tuple[Any, Callable[[], AbstractContextManager[None]]]
"""A block, and how its ops are to be computed."""


def _compare(case: Case, definition: Form, other: Form, lengths: Sequence[int], tolerance: float) -> None:
    """Outputs of the one in one call without a cache, padded or not, against those of both in every other way."""
    for length in lengths:
        x = case.input(length=length)
        mask = torch.arange(length)[None] >= torch.tensor([0, length // 3, length // 2])[:, None]
        real = mask[..., None]
        with definition[1]():
            expected = output(definition[0], x)
            padded = output(definition[0], x, mask) * real if case.is_sequence else None
        for each, form in (other, definition):
            with form():
                close(output(each, x), expected, f"{length} tokens in one call differ", tolerance)
                if padded is None:
                    continue
                close(output(each, x, mask) * real, padded, f"{length} left-padded tokens differ", tolerance)
                for chunks in _splits(length):
                    promise = f"{length} tokens in {len(chunks)} calls with a cache differ"
                    close(in_chunks(each, x, chunks), expected, promise, tolerance)
                    promise = f"{length} left-padded tokens in {len(chunks)} calls differ"
                    close(in_chunks(each, x, chunks, mask) * real, padded, promise, tolerance)


def _gradients(case: Case, form: Form, length: int) -> dict[str, Tensor]:
    """Of the input and every parameter, flat, by name."""
    block, x = form[0], case.input(length=length).requires_grad_()
    with form[1]():
        y = output(block, x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(length))
    wanted = {"the input": x, **{name: p for name, p in block.named_parameters() if p.requires_grad}}
    gradients = torch.autograd.grad(y, list(wanted.values()), direction, allow_unused=True)
    return {name: gradient.flatten() for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None}


def _splits(length: int) -> list[list[int]]:
    thirds = [size for size in (length // 3, 1, length - length // 3 - 1) if size > 0]
    return [[length], [1] * length, thirds]
