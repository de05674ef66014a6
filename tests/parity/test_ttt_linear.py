"""`ttt_linear` against the paper's equations in float64, the inner gradient taken by autograd, one token at a time."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from blocks.sequence.ttt_linear import TttLinear
from parity.compare import assert_close

BLOCK = "sequence/ttt_linear"
ORACLE = "the paper's gradient descent in float64, its gradient taken by autograd"

BATCH, D_MODEL = 2, 12
OPTIONS = {
    "mini-batches longer than most calls": {"n_heads": 2},
    "small mini-batches": {"mini_batch": 3, "n_heads": 2, "gate": True},
    "one head, no rotation": {"mini_batch": 7, "n_heads": 1, "positions": "none"},
    "quick to learn": {"mini_batch": 5, "n_heads": 3, "base_lr": 4.0},
}


def rotated(head, place):
    half = len(head) // 2
    angle = place * 10_000.0 ** (-torch.arange(half).double() / half)
    first, second = head[:half], head[half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()])


def by_the_paper(x, w, config):
    """Sun et al. 2024, sections 2.1 to 2.7, with f(u) = u + LN(u W + b): each row, head and token by itself."""
    d_model, n_heads = x.shape[-1], config.n_heads
    width = d_model // n_heads
    rows = []
    for row in x:
        heads = []
        for head in range(n_heads):
            scale, shift = w["inner_scale"][head, 0], w["inner_shift"][head, 0]

            def model(u, weight, bias, scale=scale, shift=shift):
                return u + layer_norm(u @ weight + bias, (width,), scale, shift, 1e-6)

            weight, bias = w["initial"][head, :-1], w["initial"][head, -1]
            outputs, learned = [], (weight, bias)
            for t, token in enumerate(row):
                place = t % config.mini_batch
                if place == 0:
                    weight, bias = learned
                    sums = [torch.zeros_like(weight), torch.zeros_like(bias)]
                q, k, v = (w["qkv.weight"] @ token).view(3, n_heads, width)[:, head]
                if config.positions == "rotary":
                    q, k = rotated(q, place), rotated(k, place)
                loss = (model(k, weight, bias) - v).square().sum() / 2
                gradients = torch.autograd.grad(loss, (weight, bias), create_graph=True)
                rate = torch.sigmoid(w["rate.weight"][head] @ token + w["rate.bias"][head]) * config.base_lr / width
                sums = [total + rate * gradient for total, gradient in zip(sums, gradients, strict=True)]
                share = torch.relu(1 / (place + 1) + w["token_scale"][0, place, 0])
                learned = [weight - share * sums[0], bias - share * sums[1]]
                outputs.append(model(q, *learned))
            heads.append(torch.stack(outputs))
        rows.append(torch.cat(heads, dim=-1))
    y = layer_norm(torch.stack(rows), (d_model,), w["norm.weight"], w["norm.bias"], 1e-6)
    if config.gate:
        y = y * gelu(x @ w["gate.weight"].T, approximate="tanh")
    return y @ w["out.weight"].T


def draw(options, tokens, scale=1.0):
    torch.manual_seed(tokens)
    block = TttLinear(D_MODEL, **options)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.normal_(std=0.1 if name == "token_scale" else 0.4)
        block.inner_scale.add_(1.0)
        block.rate.weight.mul_(scale)
    return block, torch.randn(BATCH, tokens, D_MODEL, requires_grad=True)


def exact_copy(block):
    return {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("tokens", "scale"), [(1, 1.0), (11, 20.0), (24, 1.0)])
def test_outputs_and_every_gradient(options, tokens, scale):
    block, x = draw(options, tokens, scale)
    direction = torch.randn(BATCH, tokens, D_MODEL)
    y, _ = block(x)
    (y * direction).sum().backward()
    w, exact_x = exact_copy(block), x.detach().double().requires_grad_()
    exact = by_the_paper(exact_x, w, block.config)
    (exact * direction).sum().backward()
    assert_close(y, exact, "the output")
    # The gradient of an inner gradient passes through LN twice at each mini-batch.
    assert_close(x.grad, exact_x.grad, "the gradient of the input", tolerance=1e-4)
    for name, parameter in block.named_parameters():
        if w[name].grad.any():
            assert_close(parameter.grad, w[name].grad, f"the gradient of {name}", tolerance=1e-4)
        else:
            assert not parameter.grad.any(), name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("calls", [(1,) * 24, (5, 1, 2, 9, 7), (16, 8), (3, 14, 7)], ids=str)
def test_any_calls_are_one_sequence(options, calls):
    block, x = draw(options, 24)
    with torch.no_grad():
        cache, outputs = block.init_cache(batch=BATCH, capacity=24), []
        for chunk in x.split(calls, 1):
            outputs.append(block(chunk, None, cache)[0])
            cache.advance(chunk.shape[1])
    exact = by_the_paper(x.detach().double(), exact_copy(block), block.config)
    assert_close(torch.cat(outputs, 1), exact.detach(), "the output", tolerance=2e-5)


@pytest.mark.parametrize("calls", [(30,), (1,) * 30, (4, 1, 13, 12)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_padding_anywhere_shifts_no_mini_batch(options, calls):
    block, x = draw(options, 30)
    mask = torch.rand(BATCH, 30) < torch.tensor([[0.5], [0.8]])
    with torch.no_grad():
        cache, outputs = block.init_cache(batch=BATCH, capacity=30), []
        for chunk in x.split(calls, 1):
            outputs.append(block(chunk, mask[:, : cache.position + chunk.shape[1]], cache)[0])
            cache.advance(chunk.shape[1])
    for row, real in enumerate(mask):
        exact = by_the_paper(x[row : row + 1, real].detach().double(), exact_copy(block), block.config)
        assert_close(torch.cat(outputs, 1)[row : row + 1, real], exact.detach(), f"row {row}", tolerance=2e-5)
