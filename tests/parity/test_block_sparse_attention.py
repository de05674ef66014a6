"""`block_sparse_attention` against its equations, written out in float64 with a loop over every query and key."""

import math

import pytest
import torch

from blocks.sequence.block_sparse_attention import BlockSparseAttention
from parity.compare import assert_close

BLOCK = "sequence/block_sparse_attention"
ORACLE = "the equations of the paper (with one set of keys and values), written out in float64"

D_MODEL, TOKENS, PADS = 12, 15, (4, 0)
OPTIONS = [
    {"n_heads": 2, "block_size": 3, "n_selected": 2, "window": 4},
    {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "block_size": 2, "n_selected": 3, "window": 1},
    {"n_heads": 3, "n_kv_heads": 1, "block_size": 4, "n_selected": 1, "window": 3, "rotary_base": 10.0},
    {"n_heads": 2, "block_size": 2, "n_selected": 2, "window": 20, "positions": "none"},
    {"n_heads": 6, "n_kv_heads": 2, "block_size": 20, "n_selected": 4, "window": 2},
]


def by_the_equations(block, w, x):
    """One unpadded row [T, D]; `w` are the parameters in the type of `x`."""
    c, width = block.config, block.head_dim
    q, k, v = ((x @ w[f"{name}.weight"].T).unflatten(1, (-1, width)) for name in ("q", "k", "v"))
    gates = 1 / (1 + torch.exp(-(x @ w["gate.weight"].T)))
    rows = []
    for t in range(len(x)):
        heads = [None] * c.n_heads
        for group in range(block.n_kv_heads):
            members = range(group * c.n_heads // block.n_kv_heads, (group + 1) * c.n_heads // block.n_kv_heads)
            keys = [turned(c, k[s, group], s) for s in range(t + 1)]
            values = [v[s, group] for s in range(t + 1)]
            queries = {head: turned(c, q[t, head], t) for head in members}
            complete = (t + 1) // c.block_size
            block_keys = [mean(keys, c.block_size, n, w["key_weights"][group]) for n in range(complete)]
            block_values = [mean(values, c.block_size, n, w["value_weights"][group]) for n in range(complete)]
            shares = {head: softmax(queries[head], block_keys) for head in members}
            own = t // c.block_size
            rating = {n: sum(shares[head][n].item() for head in members) for n in range(own)}
            chosen = [own, *sorted(rating, key=lambda n: -rating[n])[: c.n_selected - 1]]
            selected = [s for s in range(t + 1) if s // c.block_size in chosen]
            window = range(max(0, t + 1 - c.window), t + 1)
            for head in members:
                gate = [gates[t, branch * c.n_heads + head] for branch in range(3)]
                y = gate[0] * sum((p * value for p, value in zip(shares[head], block_values, strict=True)), 0 * v[0, 0])
                for weight, tokens in ((gate[1], selected), (gate[2], window)):
                    weights = softmax(queries[head], [keys[s] for s in tokens])
                    y = y + weight * sum(p * values[s] for p, s in zip(weights, tokens, strict=True))
                heads[head] = y
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ w["out.weight"].T


def mean(channels, size, n, logits):
    weights = torch.exp(logits) / torch.exp(logits).sum()
    return sum(weights[j] * channels[n * size + j] for j in range(size))


def softmax(query, keys):
    scores = [torch.exp(query @ key / len(query) ** 0.5) for key in keys]
    return [score / sum(scores) for score in scores]


def turned(c, channels, position):
    if c.positions == "none":
        return channels
    half = len(channels) // 2
    angles = [position * c.rotary_base ** (-i / half) for i in range(half)]
    cos, sin = (torch.tensor([f(angle) for angle in angles], dtype=channels.dtype) for f in (math.cos, math.sin))
    first, second = channels[:half], channels[half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_every_gradient_and_calls(options, seed):
    torch.manual_seed(seed)
    block = BlockSparseAttention(D_MODEL, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(2, TOKENS, D_MODEL, requires_grad=True)
    real = torch.arange(TOKENS)[None] >= torch.tensor(PADS)[:, None]
    direction = torch.randn_like(x) * real[..., None]
    y, _ = block(x, real)
    (y * direction).sum().backward()
    cache, calls = block.init_cache(batch=2, capacity=TOKENS), []
    with torch.no_grad():
        for part in x.split([3, 1, 1, 4, 1, 1, 1, 1, 1, 1], dim=1):
            calls.append(block(part, real[:, : cache.position + part.shape[1]], cache)[0])
            cache.advance(part.shape[1])

    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    x_exact, loss = x.detach().double().requires_grad_(), 0.0
    for row, pad in enumerate(PADS):
        exact = by_the_equations(block, w, x_exact[row, pad:])
        assert_close(y[row, pad:], exact, f"row {row}")
        assert_close(torch.cat(calls, dim=1)[row, pad:], exact, f"row {row} in ten calls")
        loss = loss + (exact * direction[row, pad:]).sum()
    loss.backward()
    assert_close(x.grad, x_exact.grad, "the input's gradient")
    largest = max(tensor.grad.abs().max() for tensor in w.values() if tensor.grad is not None)
    for name, parameter in block.named_parameters():
        if w[name].grad is None:  # no block is complete
            assert not parameter.grad.any()
        else:
            assert_close(parameter.grad, w[name].grad, f"the gradient of {name}", least=1e-2 * largest)
