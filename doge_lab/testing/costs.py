"""Checks of declared costs: FLOPs against PyTorch's counter, active parameters against what moves the output.

Shape letters: B batch row, T token, D d_model, R row of a parameter (its first dimension).
"""

import functools
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from doge_lab.testing.case import Case, check, output, require
from doge_lab.testing.products import Products

TOKENS = 16
"""Tokens looked at one by one: where heads choose the same expert for one of them, they do not for another."""
DISGUISED = 1 / 8
"""Share of the declared FLOPs that sums of elementwise products may come to: norms, a few taps of a convolution."""


@check()
def flops(case: Case) -> None:
    """`flops_per_token(context)` is what PyTorch counts in one decoding step, plus `uncounted_flops_per_token`."""
    rng = random.Random(0)
    contexts = {1, 2, 17, 64, 300, 1024, rng.randint(100, 1000), rng.randint(1000, 3000)}
    contexts |= {min(window, case.reach) + offset for window in case.windows for offset in (-1, 0, 5)}
    require_flops(case.trained(), sorted(context for context in contexts if context > 0))


def require_flops(block: Any, contexts: Sequence[int]) -> None:
    """Raise `AssertionError` where the FLOPs declared at a context are not those done."""
    for context in contexts:
        declared, by_hand = block.flops_per_token(context), block.uncounted_flops_per_token(context)
        require(by_hand >= 0, f"uncounted_flops_per_token({context}) is {by_hand}: what is counted by hand is added")
        counted, unseen, disguised = counted_flops(block, context)
        apart = f" and {by_hand} by hand (uncounted_flops_per_token)" if by_hand else ""
        require(
            counted + by_hand <= declared <= counted + by_hand + unseen,
            f"declares {declared} FLOPs per token at a context of {context}; PyTorch counts {counted}{apart}",
        )
        hidden = disguised - (declared - counted)
        require(
            hidden <= DISGUISED * declared,
            f"declares {declared} FLOPs per token at a context of {context}, and does {hidden} more in multiplications "
            "whose results are summed; count them in uncounted_flops_per_token",
        )


def counted_flops(block: Any, context: int) -> tuple[int, int, int]:
    """FLOPs that PyTorch sees in one step with `context` tokens, fused attention off (it counts 0 for that).

    The second number is what it would see as well if einsum did not turn a product over a dimension of size one
    into a multiplication; the third are matrix products written as elementwise ones.
    """
    x = torch.randn(1, 1, block.d_model)
    cache = None
    if block.kind == "sequence":
        cache = block.init_cache(batch=1, capacity=context)
        cache.advance(context - 1)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, Products() as products, _Einsums(counter) as einsums:
        output(block, x, None, cache)
    return int(counter.get_total_flops()), einsums.unseen, products.flops


class _Einsums(TorchFunctionMode):
    """Adds up the einsums in which the counter sees nothing."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.unseen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if func is torch.einsum and self.counter.get_total_flops() == before:
            self.unseen += 2 * result.numel()
        return result


@check()
def active_params(case: Case) -> None:
    """`active_params` is the number of parameters, in whole rows, that can change the output of one token."""
    require_active(case)


def require_active(case: Case) -> None:
    """Raise `AssertionError` where the active parameters declared are not those that a token can feel."""
    block = case.trained()
    total, buffers = block.num_params(), sum(buffer.numel() for buffer in block.buffers())
    declared = block.active_params() - buffers  # a buffer counts as touched, all of it
    if not list(block.parameters()):
        require(declared == 0, f"declares {declared} active parameters and has none")
        return
    with _NothingRests():
        tokens = [_active_rows(case, block, token) for token in range(TOKENS)]
    sizes = {name: parameter[:1].numel() if parameter.ndim else 1 for name, parameter in block.named_parameters()}
    counts = [sum(int(rows.sum()) * sizes[name] for name, rows in token.items()) for token in tokens]
    always = sum(
        int(torch.stack([token[name] for token in tokens]).all(0).sum()) * size for name, size in sizes.items()
    )
    require(
        _plausible(declared, counts, always),
        f"declares {declared} active parameters of {total}; {max(counts)} can change one token's output",
    )


class _NothingRests(TorchFunctionMode):
    """Lets a little through a ReLU's flat side: a unit at rest for one token is still a unit that the token touches."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_):
            return F.leaky_relu(args[0], 0.5)
        return func(*args, **(kwargs or {}))


def _plausible(declared: int, counts: list[int], always: int) -> bool:
    """Exact where every token touches as many; else a token's heads may agree on an expert and touch fewer."""
    most = max(counts)
    if min(counts) == most:
        return declared == most
    return 0 <= declared - most <= (declared - always) / 2


def _active_rows(case: Case, block: Any, seed: int) -> dict[str, Tensor]:
    """For each parameter, which rows [R] can change the output of one token."""
    # Nearly equal tokens choose alike, and the scores between them still matter to the last one's output.
    x = case.input(1, 1, seed=seed) + 1e-5 * case.input(1, 40 if case.is_sequence else 1, seed=1000 + seed)
    active: dict[str, Tensor] = {}
    block.zero_grad()
    y = output(block, x)[:, -1]
    if y.requires_grad:
        (y * case.input(1, 1, seed=2000 + seed)[:, 0]).sum().backward()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            rows = torch.zeros(parameter.shape[:1] or (1,), dtype=torch.bool)
            if parameter.grad is not None:
                rows = (parameter.grad.reshape(len(rows), -1) != 0).any(1)
            rows[_that_matter(block, x, parameter, (~rows).nonzero()[:, 0])] = True
            active[name] = rows
    return active


def _that_matter(block: Any, x: Tensor, parameter: Tensor, rows: Tensor) -> Tensor:
    """Those of `rows` without a gradient that change the output all the same: routers, units at rest."""
    if not len(rows):
        return rows
    changes = functools.partial(_changes_output, block, x, parameter)
    if not changes(rows):
        return rows[:0]
    if len(rows) == 1:
        return rows
    some = rows[:: max(1, len(rows) // 16)]
    if all(changes(row[None]) for row in some):
        return rows  # every row looked at matters alone: a matrix used whole, not a table of which a few are read
    half = len(rows) // 2
    return torch.cat([_that_matter(block, x, parameter, part) for part in (rows[:half], rows[half:])])


def _changes_output(block: Any, x: Tensor, parameter: Tensor, rows: Tensor) -> bool:
    kept = parameter.detach().clone()
    flat = parameter.data.view(-1) if parameter.ndim == 0 else parameter.data
    before = output(block, x)[:, -1]
    scale = 10 * max(1.0, float(kept.abs().max()))
    direction = torch.randn(flat[rows].shape, generator=torch.Generator().manual_seed(0))
    changed = False
    for sign in (1, -1):
        flat[rows] += sign * scale * direction
        changed |= not torch.equal(output(block, x)[:, -1], before)
        parameter.data.copy_(kept)
    return changed
