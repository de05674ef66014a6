"""`hyena` against its equations, written out in float64 with a loop over every channel, token and lag."""

import math

import pytest
import torch

from blocks.sequence.hyena import Hyena
from doge_lab.ops.dispatch import REFERENCE, using
from parity.compare import assert_close

BLOCK = "sequence/hyena"
ORACLE = "the equations of the paper, written out in float64"

D_MODEL, TOKENS, PADS = 4, 11, (3, 0)
OPTIONS = [
    {"time_scale": 8.0, "filter_dim": 5, "filter_frequency": 3.0},
    {"time_scale": 4.0, "filter_dim": 3, "window": 4, "filter_depth": 1, "short_kernel": 2},
    {"time_scale": 30.0, "filter_depth": 3, "filter_bands": 1, "filter_frequency": 2.0, "short_kernel": 5},
]


def by_the_equations(block, w, x):
    """One unpadded row [T, D]; `w` are the parameters in the type of `x`."""
    c = block.config
    projected = x @ w["project_in.weight"].T
    mixed = [
        sum(w["conv.weight"][c.short_kernel - 1 - j] * projected[t - j] for j in range(min(t + 1, c.short_kernel)))
        for t in range(len(x))
    ]
    x1, x2, v = torch.stack(mixed).chunk(3, dim=1)
    u = x2 * v
    taps = [[tap(c, w, lag, channel) for channel in range(D_MODEL)] for lag in range(min(len(x), c.window or len(x)))]
    rows = []
    for t in range(len(x)):
        channels = [
            sum(taps[lag][d] * u[t - lag, d] for lag in range(min(t + 1, len(taps)))) + w["bias"][d] * u[t, d]
            for d in range(D_MODEL)
        ]
        rows.append(x1[t] * torch.stack(channels))
    return torch.stack(rows) @ w["project_out.weight"].T


def tap(c, w, lag, channel):
    """The filter of one channel at one lag."""
    time, bands = lag / c.time_scale, range(1, c.filter_bands + 1)
    features = [time, *(math.cos(2 * math.pi * f * time) for f in bands)]
    hidden = torch.tensor(features + [math.sin(2 * math.pi * f * time) for f in bands], dtype=torch.float64)
    for layer in range(c.filter_depth):
        hidden = torch.sin(w["frequency"] * (w[f"filter.{layer}.weight"] @ hidden + w[f"filter.{layer}.bias"]))
    slow, fast = math.log(100) / 1.5, math.log(100) / 0.3
    decay = slow + (fast - slow) * channel / (D_MODEL - 1)
    return (w["filter_out.weight"][channel] @ hidden) * math.exp(-decay * time)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_every_gradient_and_calls(options, seed):
    torch.manual_seed(seed)
    block = Hyena(D_MODEL, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, TOKENS, D_MODEL, requires_grad=True)
    real = torch.arange(TOKENS)[None] >= torch.tensor(PADS)[:, None]
    direction = torch.randn_like(x) * real[..., None]
    y, _ = block(x, real)
    (y * direction).sum().backward()
    cache, calls = block.init_cache(batch=2, capacity=TOKENS), []
    with torch.no_grad():
        for part in x.split([4, 1, 1, 3, 2], dim=1):
            calls.append(block(part, real[:, : cache.position + part.shape[1]], cache)[0])
            cache.advance(part.shape[1])

    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    x_exact, loss = x.detach().double().requires_grad_(), 0.0
    for row, pad in enumerate(PADS):
        exact = by_the_equations(block, w, x_exact[row, pad:])
        assert_close(y[row, pad:], exact, f"row {row}")
        assert_close(torch.cat(calls, dim=1)[row, pad:], exact, f"row {row} in five calls")
        loss = loss + (exact * direction[row, pad:]).sum()
    loss.backward()
    assert_close(x.grad, x_exact.grad, "the input's gradient")
    for name, parameter in block.named_parameters():
        assert_close(parameter.grad, w[name].grad, f"the gradient of {name}")


@pytest.mark.parametrize("window", [None, 40])
def test_both_ways_give_the_same_gradients_over_many_tokens(window):
    torch.manual_seed(0)
    block = Hyena(8, window=window)
    x, direction = torch.randn(2, 2, 150, 8)
    gradients = []
    for form in ("fft", REFERENCE):
        with using(form):
            y, _ = block(x)
        gradients.append(torch.autograd.grad((y * direction).sum(), list(block.parameters())))
    for (name, _), ours, theirs in zip(block.named_parameters(), *gradients, strict=True):
        assert_close(ours, theirs, f"the gradient of {name}")
