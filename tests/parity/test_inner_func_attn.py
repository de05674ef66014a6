"""`inner_func_attn` against its equations, written out in float64 with a loop over every row, head, query and key."""

import math

import pytest
import torch

from blocks.sequence.inner_func_attn import InnerFuncAttn

BLOCK = "sequence/inner_func_attn"
ORACLE = "the equations of the paper, written out in float64"

D_MODEL, ROWS, TOKENS = 12, 2, 7
PAD = (2, 0)  # padding in front of each row
OPTIONS = [
    {},
    {"n_heads": 1, "n_inner_values": 1},
    {"n_heads": 3, "n_inner_value_heads": 2, "n_inner_value_per_head": 3, "max_position_embeddings": 4},
    {"router": "softmax_all", "n_inner_value_per_head": 2, "mask": "none"},
    {"router": "softmax_chosen", "n_inner_value_per_head": 2, "d_inner_values_retrieval": 5},
    {"router": "softmax_chosen", "n_inner_values": 3, "n_inner_value_per_head": 3},
    {"positions": "rotary", "n_heads": 2, "rotary_base": 100.0},
    {"fidelity": "published"},
    {"fidelity": "published", "n_inner_value_heads": 2, "n_inner_value_per_head": 3, "max_position_embeddings": 5},
    {"fidelity": "published", "n_heads": 2, "positions": "rotary", "mask": "none"},
]


def by_the_equations(block, w, x):
    """The output of one unpadded row `x` [T, D]; `w` are the block's parameters in the type of `x`."""
    c = block.config
    width = x.shape[1] // c.n_heads
    q, k, query = (linear(w, name, x) for name in ("q", "k", "retrieve"))
    values = torch.stack([x[t] * inner_value(c, w, query[t]) for t in range(len(x))])
    rows = []
    for i in range(len(x)):
        heads = []
        for head in range(c.n_heads):
            mine = slice(head * width, (head + 1) * width)
            scores, seen = [], []
            for j in range(i + 1):
                on, bias = mask(c, w, head, j)
                if on or j == i:
                    scores.append(turned(c, q[i, mine], i) @ turned(c, k[j, mine], j) / math.sqrt(width) + bias)
                    seen.append(values[j, mine])
            heads.append(torch.stack(scores).softmax(0) @ torch.stack(seen))
        rows.append(torch.cat(heads))
    return linear(w, "out", torch.stack(rows))


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def inner_value(c, w, query):
    """The sum of what one token's retrieval heads pick."""
    total = 0.0
    for head, part in enumerate(query.chunk(c.n_inner_value_heads)):
        scores = [part @ w["retrieval_keys"][head, :, n] for n in range(c.n_inner_values)]
        chosen = sorted(range(c.n_inner_values), key=lambda n: -scores[n])[: c.n_inner_value_per_head]
        over = {"softmax_all": range(c.n_inner_values), "softmax_chosen": chosen}.get(c.router, ())
        for n in chosen:
            if c.fidelity == "published":
                weight = 1.0
            elif c.router == "sigmoid":
                weight = 1 / (1 + torch.exp(-scores[n]))
            else:
                weight = torch.exp(scores[n]) / sum(torch.exp(scores[m]) for m in over)
            total = total + weight * w["inner_values"][n]
    return total


def mask(c, w, head, position):
    """Whether a head may look at a key position, and what is added to its score."""
    if c.mask == "none" or position >= c.max_position_embeddings:
        return True, 0.0
    number = w["mask"][head, position]
    return (round(number.item()) != 0, 0.0) if c.fidelity == "published" else (True, number)


def turned(c, channels, position):
    if c.positions == "none":
        return channels
    half = len(channels) // 2
    angle = [position * c.rotary_base ** (-i / half) for i in range(half)]
    pairs = [(channels[i], channels[i + half], math.cos(a), math.sin(a)) for i, a in enumerate(angle)]
    return torch.stack(
        [a * cos - b * sin for a, b, cos, sin in pairs] + [a * sin + b * cos for a, b, cos, sin in pairs]
    )


def random_block(options):
    torch.manual_seed(0)
    block = InnerFuncAttn(D_MODEL, **options)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.copy_(torch.rand_like(parameter) if name == "mask" else 0.4 * torch.randn_like(parameter))
    return block


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_and_every_gradient(options, padded):
    block = random_block(options)
    x = torch.randn(ROWS, TOKENS, D_MODEL, requires_grad=True)
    pads = PAD if padded else (0, 0)
    real = torch.arange(TOKENS)[None] >= torch.tensor(pads)[:, None]
    direction = torch.randn(ROWS, TOKENS, D_MODEL) * real[..., None]
    y, _ = block(x, real if padded else None)
    (y * direction).sum().backward()

    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    x_exact = x.detach().double().requires_grad_()
    loss = 0.0
    for row, pad in enumerate(pads):
        exact = by_the_equations(block, w, x_exact[row, pad:])
        off = (y[row, pad:] - exact).abs().max() / exact.abs().max()
        assert off < 1e-5, f"row {row} is off by {off:.1e} of its largest output"
        loss = loss + (exact * direction[row, pad:]).sum()
    loss.backward()
    largest = x_exact.grad.abs().max()
    for name, parameter in [("x", x), *block.named_parameters()]:
        exact_grad = x_exact.grad if name == "x" else w[name].grad
        if parameter.grad is None or exact_grad is None:
            assert parameter.grad is None or not parameter.grad.any()
            assert exact_grad is None or not exact_grad.any()
            continue
        # a bias of all keys changes no softmax: its gradient is rounding
        off = (parameter.grad - exact_grad).abs().max() / max(exact_grad.abs().max(), 0.05 * largest)
        assert off < 1e-5, f"the gradient of {name} is off by {off:.1e} of the largest"
