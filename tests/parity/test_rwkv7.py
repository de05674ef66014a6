"""`rwkv7` against the paper's equations, written out in float64 with loops, gradients included."""

import math

import pytest
import torch

from blocks.sequence.rwkv7 import Rwkv7

BLOCK = "sequence/rwkv7"
ORACLE = "the recurrence of the paper, written out in float64"
D_MODEL, ROWS = 12, 2
OPTIONS = {
    "many heads": {"n_heads": 4, "decay_rank": 3, "rate_rank": 2, "gate_rank": 5},
    "one head": {"n_heads": 1},
}
DECAYS = {"weak": -9.0, "ordinary": -1.0, "strong": 3.0}  # the centre of the decay's bias


def by_the_paper(x, w, heads):
    """Peng et al. 2025, equations 3 to 21 without 8 to 10 of the value residual, one row at a time."""
    y = torch.zeros_like(x)
    for row in range(x.shape[0]):
        state = torch.zeros(heads, D_MODEL // heads, D_MODEL // heads, dtype=x.dtype)  # [H, V, K]
        before = torch.zeros(D_MODEL, dtype=x.dtype)
        for t in range(x.shape[1]):
            y[row, t], state = one_token(x[row, t], before, state, w)
            before = x[row, t]
    return y


def one_token(x, before, state, w):
    x_r, x_w, x_k, x_v, x_a, x_g = (share * before + (1 - share) * x for share in w["shift"])
    r, k, v = w["r.weight"] @ x_r, w["k.weight"] @ x_k, w["v.weight"] @ x_v
    rate = torch.sigmoid(w["rate_up.weight"] @ (w["rate_down.weight"] @ x_a) + w["rate_up.bias"])
    decay = w["decay_up.weight"] @ torch.tanh(w["decay_down.weight"] @ x_w) + w["decay_up.bias"]
    decay = torch.exp(-torch.sigmoid(decay) / math.sqrt(math.e))
    removal, replacement = k * w["unlearning"], k * (1 - w["learning"] + w["learning"] * rate)
    outputs, states = [], []
    for head, s in enumerate(state):
        part = slice(head * len(s), (head + 1) * len(s))
        along = removal[part] / (removal[part].square().sum() + 1e-6).sqrt()
        s = s @ (torch.diag(decay[part]) - torch.outer(along, rate[part] * along))
        s = s + torch.outer(v[part], replacement[part])
        o = s @ r[part]
        o = (o - o.mean()) / (o.var(correction=0) + 1e-5 * len(s)).sqrt() * w["norm.weight"][part]
        bonus = (r[part] * w["bonus"][head] * replacement[part]).sum() * v[part]
        outputs.append(o + w["norm.bias"][part] + bonus)
        states.append(s)
    gate = w["gate_up.weight"] @ torch.sigmoid(w["gate_down.weight"] @ x_g)
    return w["out.weight"] @ (gate * torch.cat(outputs)), torch.stack(states)


@pytest.mark.parametrize("tokens", [1, 6, 37])
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_forward_and_every_gradient(options, decays, tokens):
    torch.manual_seed(tokens)
    block = Rwkv7(D_MODEL, **options)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.normal_(std=0.5).add_(DECAYS[decays] if name == "decay_up.bias" else 0.0)
    x, direction = torch.randn(2, ROWS, tokens, D_MODEL)
    x.requires_grad_()
    y, _ = block(x)
    (y * direction).sum().backward()

    weights = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    exact = by_the_paper(exact_x, weights, options["n_heads"])
    (exact * direction).sum().backward()

    close(y, exact, "the output")
    close(x.grad, exact_x.grad, "the input's gradient")
    for name, parameter in block.named_parameters():
        close(parameter.grad, weights[name].grad, f"the gradient of {name}")


def close(actual, exact, what):
    off = (actual - exact).abs().max() / (exact.abs().max() + 1e-6)  # a first token has nothing to forget
    assert off < 2e-5, f"{what} is off by {off:.1e} of the largest"
