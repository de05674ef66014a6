"""`retention` against the recurrence of the paper, one head and token at a time in float64, with every gradient."""

import math

import pytest
import torch

from blocks.sequence.retention import Retention
from doge_lab.errors import UserError

BLOCK = "sequence/retention"
ORACLE = "the recurrence of the paper, written out in float64"
SHAPES = [(2, 3, 8, 2), (1, 19, 12, 3), (2, 70, 16, 1), (1, 133, 8, 2)]  # rows, tokens, d_model, heads


def rotation(position, width):
    """The matrix that rotates each channel i of the first half with its partner in the second."""
    matrix, half = torch.zeros(width, width).double(), width // 2
    for i in range(half):
        angle = position * 10_000.0 ** (-i / half)
        matrix[i, i] = matrix[i + half, i + half] = math.cos(angle)
        matrix[i, i + half], matrix[i + half, i] = -math.sin(angle), math.sin(angle)
    return matrix


def by_the_paper(w, x, n_heads, decay_exponent, rotary):
    """Sun et al. 2023, equations 6 and 8."""
    outputs = []
    for row in x:
        heads = []
        gate = row @ w["gate.weight"].T
        per_head = zip(*((row @ w[f"{name}.weight"].T).chunk(n_heads, -1) for name in "qkv"), strict=True)
        for head, (q, k, v) in enumerate(per_head):
            decay, state, o = 1 - 2 ** (-decay_exponent - head), 0, []
            for t in range(len(row)):
                turn = rotation(t, q.shape[-1]) if rotary else torch.eye(q.shape[-1]).double()
                state = decay * state + torch.outer(turn @ k[t] / q.shape[-1] ** 0.5, v[t])
                o.append((turn @ q[t]) @ state)
            o = torch.stack(o)
            o = o - o.mean(-1, keepdim=True)
            heads.append(o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt())
        normed = torch.cat(heads, -1) * w["norm.weight"] + w["norm.bias"]
        outputs.append((gate * gate.sigmoid() * normed) @ w["out.weight"].T)
    return torch.stack(outputs)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("decay_exponent", "rotary"), [(5.0, True), (0.1, True), (12.0, False)])
@pytest.mark.parametrize(("rows", "tokens", "d_model", "n_heads"), SHAPES)
def test_forward_and_every_gradient(rows, tokens, d_model, n_heads, decay_exponent, rotary):
    torch.manual_seed(tokens)
    positions = "rotary" if rotary else "none"
    block = Retention(d_model, n_heads=n_heads, decay_exponent=decay_exponent, positions=positions)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
        block.k.weight.lerp_(block.q.weight, 0.7)  # products of mostly one sign: no norm divides by next to nothing
    x, direction = torch.randn(2, rows, tokens, d_model)
    x.requires_grad_()
    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    y, exact = block(x)[0], by_the_paper(w, exact_x, n_heads, decay_exponent, rotary)
    assert (y - exact).abs().max() < 2e-5 * exact.abs().max()
    (y * direction).sum().backward()
    (exact * direction).sum().backward()
    assert (x.grad - exact_x.grad).abs().max() < 1e-4 * exact_x.grad.abs().max()
    for name, parameter in block.named_parameters():
        off = (parameter.grad - w[name].grad).abs().max() / w[name].grad.abs().max()
        assert off < 1e-4, f"the gradient of {name} is off by {off:.1e} of the largest"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "d_model=32 must be divisible by n_heads=3"),
        ({"n_heads": 32}, "say another n_heads, or positions: none"),
        ({"expand_v": 0.1}, "say a larger expand_v"),
        ({"expand_v": 0.3}, "expand_v * d_model=10 must be divisible by n_heads=4"),
        ({"decay_exponent": 0.0}, "decay_exponent"),
    ],
)
def test_errors_say_the_rule(options, message):
    with pytest.raises(UserError) as error:
        Retention(32, **options)
    assert message in str(error.value)


def test_the_state_is_float32_whatever_the_cache():
    cache = Retention(32, n_heads=2).init_cache(batch=3, capacity=100, dtype=torch.bfloat16)
    assert cache.nbytes() == 3 * 2 * 16 * 32 * 4
