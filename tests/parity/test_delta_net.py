"""`delta_net` against the paper's recurrence, written out in float64 with loops, gradients included."""

import pytest
import torch
from torch.nn.functional import silu

from blocks.sequence.delta_net import DeltaNet

BLOCK = "sequence/delta_net"
ORACLE = "the recurrence of the paper, written out in float64"
D_MODEL, ROWS = 12, 2
OPTIONS = {
    "published": {"n_heads": 2},
    "wide values": {"n_heads": 1, "head_dim": 5, "value_dim": 9, "kernel_size": 2},
    "no convolution": {"n_heads": 3, "kernel_size": None},
    "negative": {"n_heads": 2, "head_dim": 3, "value_dim": 4, "allow_negative": True},
}


def by_the_paper(x, w, options):
    """Yang et al. 2024, section 2.2: S_t = S_{t-1} - (S_{t-1} k) bᵀ k + b v, one row and head at a time."""
    heads = options["n_heads"]
    head_k = options.get("head_dim", D_MODEL // heads)
    head_v = options.get("value_dim", head_k)
    qkv = silu(convolve(x @ w["qkv.weight"].T, w.get("conv.weight")))
    q, k, v = qkv.split([heads * head_k, heads * head_k, heads * head_v], dim=-1)
    strength = torch.sigmoid(x @ w["strength.weight"].T) * (2 if options.get("allow_negative") else 1)
    y = torch.zeros(*x.shape[:2], heads * head_v, dtype=x.dtype)
    for row in range(x.shape[0]):
        for head in range(heads):
            keys, values = slice(head * head_k, (head + 1) * head_k), slice(head * head_v, (head + 1) * head_v)
            state = torch.zeros(head_v, head_k, dtype=x.dtype)
            for t in range(x.shape[1]):
                q_t, k_t = (of[row, t, keys] / (of[row, t, keys].square().sum() + 1e-6).sqrt() for of in (q, k))
                old = state @ k_t
                new = strength[row, t, head] * v[row, t, values] + (1 - strength[row, t, head]) * old
                state = state + torch.outer(new - old, k_t)
                o = state @ q_t
                y[row, t, values] = o / (o.square().mean() + 1e-6).sqrt() * w["norm.weight"]
    return y @ w["out.weight"].T


def convolve(x, kernel):
    if kernel is None:
        return x
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for age in range(min(t + 1, len(kernel))):
            y[:, t] = y[:, t] + kernel[-1 - age] * x[:, t - age]
    return y


@pytest.mark.parametrize("tokens", [2, 7, 37])
@pytest.mark.parametrize("strength", [0.3, 6.0])
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_forward_and_every_gradient(options, strength, tokens):
    torch.manual_seed(tokens)
    block = DeltaNet(D_MODEL, **options)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.normal_(std=strength if "strength" in name else 0.5)
    x, direction = torch.randn(2, ROWS, tokens, D_MODEL)
    x.requires_grad_()
    y, _ = block(x)
    (y * direction).sum().backward()

    weights = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    exact = by_the_paper(exact_x, weights, options)
    (exact * direction).sum().backward()

    close(y, exact, "the output")
    close(x.grad, exact_x.grad, "the input's gradient")
    for name, parameter in block.named_parameters():
        close(parameter.grad, weights[name].grad, f"the gradient of {name}")


def close(actual, exact, what):
    off = (actual - exact).abs().max() / exact.abs().max()
    assert off < 2e-5, f"{what} is off by {off:.1e} of the largest"
