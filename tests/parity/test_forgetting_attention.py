"""`forgetting_attention` against the paper's equations, in float64 with a loop over rows, heads and tokens."""

import math

import pytest
import torch

from blocks.sequence import forgetting_attention
from blocks.sequence.forgetting_attention import ForgettingAttention

BLOCK = "sequence/forgetting_attention"
ORACLE = "the equations of the paper, written out in float64"

D_MODEL = 12
OPTIONS = [
    {},
    {"n_heads": 6, "n_kv_heads": 2, "qk_norm": True},
    {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "positions": "rotary", "rotary_base": 50.0},
]
GATES = {"weak": (6.0, 0.5), "ordinary": (0.0, 0.5), "strong": (-15.0, 1.0), "weak and strong": (0.0, 2.0)}
"""The centre of the gates' logits, and the size of the weights that spread them over tokens."""


def by_the_paper(block, w, x):
    """The output of one unpadded row `x` [T, D]; `w` are the block's parameters in the type of `x`."""
    c, width = block.config, block.head_dim
    q, k, v = (x @ w[f"{name}.weight"].T for name in ("q", "k", "v"))
    gates = 1 / (1 + torch.exp(-(x @ w["forget.weight"].T + w["forget.bias"])))
    rows = []
    for i in range(len(x)):
        heads = []
        for head in range(c.n_heads):
            shared = head // (c.n_heads // block.n_kv_heads)
            mine, theirs = (slice(index * width, (index + 1) * width) for index in (head, shared))
            query, scores = prepared(c, w, "q", q[i, mine], i), []
            for j in range(i + 1):
                forgotten = sum((torch.log(gates[step, head]) for step in range(j + 1, i + 1)), start=0.0)
                scores.append(query @ prepared(c, w, "k", k[j, theirs], j) / math.sqrt(width) + forgotten)
            heads.append(torch.stack(scores).softmax(0) @ v[: i + 1, theirs])
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ w["out.weight"].T


def prepared(c, w, name, channels, position):
    """A query or a key, normalised and turned where the options say so."""
    if c.qk_norm:
        channels = channels / (channels.square().mean() + 1e-6).sqrt() * w[f"{name}_norm.weight"]
    if c.positions == "none":
        return channels
    half = len(channels) // 2
    angle = [position * c.rotary_base ** (-i / half) for i in range(half)]
    pairs = [(channels[i], channels[i + half], math.cos(a), math.sin(a)) for i, a in enumerate(angle)]
    return torch.stack(
        [a * cos - b * sin for a, b, cos, sin in pairs] + [a * sin + b * cos for a, b, cos, sin in pairs]
    )


def random_block(options, gates, seed=0):
    torch.manual_seed(seed)
    block = ForgettingAttention(D_MODEL, **options)
    centre, spread = GATES[gates]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.4)
        block.forget.weight.normal_(std=spread)
        block.forget.bias.add_(centre)
    return block


@pytest.mark.parametrize(("pads", "queries_of_a_block"), [((0, 0), 3), ((2, 0), 64)], ids=str)
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_and_every_gradient(options, gates, pads, queries_of_a_block, monkeypatch):
    monkeypatch.setattr(forgetting_attention, "_QUERIES", queries_of_a_block)
    block, tokens = random_block(options, gates), 7
    x = torch.randn(2, tokens, D_MODEL, requires_grad=True)
    real = torch.arange(tokens)[None] >= torch.tensor(pads)[:, None]
    direction = torch.randn(2, tokens, D_MODEL) * real[..., None]
    y, _ = block(x, real if any(pads) else None)
    (y * direction).sum().backward()

    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    x_exact = x.detach().double().requires_grad_()
    loss = 0.0
    for row, pad in enumerate(pads):
        exact = by_the_paper(block, w, x_exact[row, pad:])
        off = (y[row, pad:] - exact).abs().max() / exact.abs().max()
        assert off < 1e-5, f"row {row} is off by {off:.1e} of its largest output"
        loss = loss + (exact * direction[row, pad:]).sum()
    loss.backward()
    largest = max(tensor.grad.abs().max() for tensor in [x_exact, *w.values()])
    for name, parameter in [("x", x), *block.named_parameters()]:
        exact_grad = x_exact.grad if name == "x" else w[name].grad
        # the gradient of a gate that is shut, next to nothing, is lost in the rounding of the others
        off = (parameter.grad - exact_grad).abs().max() / max(exact_grad.abs().max(), 0.05 * largest)
        assert off < 1e-5, f"the gradient of {name} is off by {off:.1e} of the largest"


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 6]], ids=str)
def test_decoding(gates, chunks, monkeypatch):
    monkeypatch.setattr(forgetting_attention, "_QUERIES", 4)
    block = random_block({"n_heads": 4, "n_kv_heads": 2}, gates, seed=1)
    x, w = torch.randn(1, 12, D_MODEL), {name: parameter.double() for name, parameter in block.named_parameters()}
    cache, outputs = block.init_cache(batch=1, capacity=12), []
    with torch.no_grad():
        exact = by_the_paper(block, w, x[0].double())
        for chunk in x.split(chunks, dim=1):
            outputs.append(block(chunk, None, cache)[0])
            cache.advance(chunk.shape[1])
    off = (torch.cat(outputs, dim=1)[0] - exact).abs().max() / exact.abs().max()
    assert off < 1e-5, f"decoding is off by {off:.1e} of the largest output"


def test_in_bfloat16_what_was_forgotten_is_not_rounded_away():
    """Under autocast a bias carries it: a key channel in bfloat16 would round what was forgotten to 8 bits."""
    block = random_block({}, "weak and strong")
    x = torch.randn(1, 130, D_MODEL)
    with torch.no_grad():
        expected, _ = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = block(x)
    off = (y.float() - expected).norm() / expected.norm()
    assert off < 0.01, f"the output is off by {off:.1e}"


def test_what_is_near_stays_exact_however_much_was_forgotten():
    """The last tokens, whose gates are open, after a past whose sum of log gates float32 rounds to 1e-3."""
    block, tokens, open_from = random_block({"n_heads": 2}, "ordinary"), 520, 480
    with torch.no_grad():
        block.forget.weight.zero_()
        block.forget.weight[:, 0] = 20.0
        x = torch.randn(1, tokens, D_MODEL)
        x[..., 0] = torch.where(torch.arange(tokens) < open_from, -1.0, 0.1)
        expected, _ = block(x[:, open_from - 3 :])
        y, _ = block(x)
        cache = block.init_cache(batch=1, capacity=tokens)
        block(x[:, :-1], None, cache)
        cache.advance(tokens - 1)
        last, _ = block(x[:, -1:], None, cache)
    for name, actual in (("in one call", y[:, open_from:]), ("decoding", last)):
        off = (actual - expected[:, -actual.shape[1] :]).abs().max() / expected.abs().max()
        assert off < 1e-5, f"{name} it is off by {off:.1e} of the largest output"
