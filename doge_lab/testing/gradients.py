"""Checks of gradients: what backward returns is the slope of what forward computes.

For a loss L = <w, f(x)> and a direction v, in float64:  <dL/dp, v> = (L(p + h v) - L(p - h v)) / 2h

Two step sizes are compared first: where they disagree the loss has a kink between them (a router chooses otherwise),
and nothing can be said there.

Shape letters: B batch row, T token, D d_model.
"""

import statistics
from typing import Any

import torch
from torch import Tensor

from doge_lab.testing.case import Case, Skipped, check, output, require

STEPS = (1e-4, 1e-5)
SMOOTH = 1e-4
"""Largest relative difference between two step sizes where the loss is smooth."""
ALLOWED = 1e-2
"""Largest relative difference between a slope and the gradient along it."""
STRAIGHT = 0.45
"""The same for a routed block, whose choices may learn by a straight-through gradient that is no slope."""
TRIES = 5


@check()
def gradients(case: Case) -> None:
    """Backward gives the slope of the forward, for the input and each parameter, in training mode, in float32 too."""
    if case.widest != torch.float64:
        raise Skipped("the block does not compute in float64")
    block = case.trained().double().train()
    if block.is_none:
        raise Skipped("`none` has no gradient")
    found: dict[str, list[float]] = {}
    for attempt in range(TRIES):
        x = case.input(2, 12, seed=300 + attempt).double().requires_grad_()
        y = _run(block, x)
        require(y.requires_grad, "the output has no gradient")
        weights = case.input(2, 12, seed=400 + attempt).double()
        leaves = {"the input": x, **dict(block.named_parameters())}
        grads = torch.autograd.grad((y * weights).sum(), list(leaves.values()), allow_unused=True)
        if attempt == 0:
            require(grads[0] is not None and grads[0].abs().sum() > 0, "no gradient reaches the input")
        for index, (name, leaf) in enumerate(leaves.items()):
            if len(found.get(name, [])) < 3:
                error = _error(block, x, weights, leaf, grads[index], attempt)
                found.setdefault(name, []).extend([] if error is None else [error])
    for name, errors in found.items():
        error = statistics.median(errors) if errors else 0.0
        what, allowed = name if name == "the input" else repr(name), ALLOWED if block.router_stats is None else STRAIGHT
        require(error <= allowed, f"the gradient of {what} is off by {error:.2g} of the slope (allowed: {allowed:g})")
    _require_same_in_float32(case)


def _run(block: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return output(block, x)


def _error(block: Any, x: Tensor, weights: Tensor, leaf: Tensor, grad: Tensor | None, seed: int) -> float | None:
    """Relative difference of gradient and slope along one direction; None where the loss is not smooth."""
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(seed)).to(leaf)
    if leaf is not x:
        direction *= leaf.detach().abs().mean().clamp(min=0.1)
    kept = leaf.detach().clone()

    def loss(step: float) -> float:
        with torch.no_grad():
            leaf.copy_(kept + step * direction)
            value = float((_run(block, x) * weights).sum())
            leaf.copy_(kept)
        return value

    slopes = [(loss(step) - loss(-step)) / (2 * step) for step in STEPS]
    along = 0.0 if grad is None else float((grad * direction).sum())
    largest = max(abs(along), *map(abs, slopes))
    scale = max(largest, 1e-3 * float(direction.norm()))
    if abs(slopes[0] - slopes[1]) > SMOOTH * scale:
        return None
    if block.router_stats is not None and abs(slopes[1]) < SMOOTH * scale:
        return None  # what only chooses has no slope
    return abs(slopes[1] - along) / scale


def _require_same_in_float32(case: Case) -> None:
    """The gradient in float32, which is the one that trains, points where that of float64 does."""
    x, weights = case.input(2, 12, seed=300), case.input(2, 12, seed=400)
    found = []
    for dtype in (torch.float32, torch.float64):
        block = case.trained().to(dtype).train()
        leaf = x.to(dtype).requires_grad_()
        (_run(block, leaf) * weights.to(dtype)).sum().backward()
        named = {"the input": leaf, **dict(block.named_parameters())}
        found.append({name: tensor.grad for name, tensor in named.items() if tensor.grad is not None})
    for name in found[0].keys() & found[1].keys():
        norm = float(found[1][name].norm())
        off = float((found[0][name].double() - found[1][name]).norm()) / (norm or 1.0)
        require(
            off <= 0.1 or norm < 1e-6, f"the gradient of {name!r} in float32 is off by {off:.2g} of that in float64"
        )
