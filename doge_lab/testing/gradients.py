"""Checks of gradients: what backward returns is the slope of what forward computes.

For a loss L = <w, f(x)> and a direction v:  <dL/dp, v> = (L(p + h v) - L(p - h v)) / 2h

Two step sizes are compared first: where they disagree the loss has a kink between them (a router chooses otherwise),
and nothing can be said there.

Shape letters: B batch row, T token, D d_model.
"""

import statistics
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doge_lab.determinism import seed_torch
from doge_lab.testing.case import Case, Skipped, check, output, require


class Precision(NamedTuple):
    """How slopes are taken in a type.

    steps: the two step sizes. smooth: largest relative difference between them where the loss is smooth. allowed:
    largest relative difference between a slope and the gradient along it.
    """

    steps: tuple[float, float]
    smooth: float
    allowed: float


PRECISIONS = {
    torch.float64: Precision((1e-4, 1e-5), smooth=1e-4, allowed=1e-2),
    torch.float32: Precision((2e-2, 1e-2), smooth=2e-2, allowed=0.2),
}
"""What computes in float32, all of a block or a part, has no slopes over tiny steps: there larger ones are taken."""
STRAIGHT = 0.45
"""What is allowed for a routed block, whose choices may learn by a straight-through gradient that is no slope."""
TRIES = 5


@check()
def gradients(case: Case) -> None:
    """Backward gives the slope of the forward, for the input and each parameter, in training mode, in float32 too."""
    dtype = case.widest
    block = case.trained().to(dtype).train()
    if block.is_none:
        raise Skipped("`none` has no gradient")
    found: dict[str, list[float]] = {}
    for attempt in range(TRIES):
        x = case.input(2, 12, seed=300 + attempt).to(dtype).requires_grad_()
        y = _run(block, x)
        require(y.requires_grad, "the output has no gradient")
        weights = case.input(2, 12, seed=400 + attempt).to(dtype)
        leaves = {"the input": x, **dict(block.named_parameters())}
        grads = torch.autograd.grad((y * weights).sum(), list(leaves.values()), allow_unused=True)
        if attempt == 0:
            require(grads[0] is not None and grads[0].abs().sum() > 0, "no gradient reaches the input")
        for index, (name, leaf) in enumerate(leaves.items()):
            if len(found.get(name, [])) < 3:
                error = _error(block, x, weights, leaf, grads[index], attempt)
                found.setdefault(name, []).extend([] if error is None else [error])
    for name, errors in found.items():
        off = statistics.median(errors) if errors else 0.0
        what = name if name == "the input" else repr(name)
        require(off <= 1, f"the gradient of {what} is off the slope by {off:.2g} times what is allowed")
    if dtype == torch.float64:
        _require_same_in_float32(case)


def _run(block: Any, x: Tensor) -> Tensor:
    seed_torch(0)
    return output(block, x)


def _error(block: Any, x: Tensor, weights: Tensor, leaf: Tensor, grad: Tensor | None, seed: int) -> float | None:
    """Difference of gradient and slope along one direction, as a share of what is allowed.

    None where the loss is not smooth, over small steps or larger ones.
    """
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(seed)).to(leaf)
    if leaf is not x:
        direction *= leaf.detach().abs().mean().clamp(min=0.1)
    kept = leaf.detach().clone()

    def loss(step: float) -> float:
        with torch.no_grad():
            leaf.copy_(kept + step * direction)
            value = float((_run(block, x) * weights).double().sum())
            leaf.copy_(kept)
        return value

    along = 0.0 if grad is None else float((grad * direction).sum())
    routed = block.router_stats is not None
    for precision in [PRECISIONS[dtype] for dtype in (torch.float64, torch.float32) if dtype.itemsize <= x.itemsize]:
        slopes = [(loss(step) - loss(-step)) / (2 * step) for step in precision.steps]
        scale = max(abs(along), *map(abs, slopes), 1e-3 * float(direction.norm()))
        if abs(slopes[0] - slopes[1]) > precision.smooth * scale:
            continue
        if routed and abs(slopes[1]) < precision.smooth * scale:
            return None  # what only chooses has no slope
        return abs(slopes[1] - along) / scale / (STRAIGHT if routed else precision.allowed)
    return None


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
