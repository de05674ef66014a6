"""`kan` computes the sum over edges of its published equation, gradients included, one edge at a time in float64.

The B-splines come from the recursion of Cox and de Boor over knots, which the block does not use.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from blocks.state.kan import KAN
from doge_lab.errors import UserError
from doge_lab.testing import check_block

BLOCK = "state/kan"
ORACLE = "the sum over edges with the recursion of Cox and de Boor, written out in float64"


def cox_de_boor(x, knots, i, order):
    """The i-th B-spline of `order` on evenly spaced knots, at the number x."""
    if order == 0:
        return x * 0 + float(knots[i] <= x < knots[i + 1])
    width = order * (knots[1] - knots[0])
    left, right = cox_de_boor(x, knots, i, order - 1), cox_de_boor(x, knots, i + 1, order - 1)
    return (x - knots[i]) / width * left + (knots[i + order + 1] - x) / width * right


def basis(x, c):
    """The basis functions of the number x."""
    if c.basis == "rbf":
        spacing = 2 * c.grid_range / (c.n_basis - 1)
        return [torch.exp(-(((x + c.grid_range - g * spacing) / spacing) ** 2)) for g in range(c.n_basis)]
    spacing = 2 * c.grid_range / (c.n_basis - c.order)
    knots = [-c.grid_range + spacing * (i - c.order) for i in range(c.n_basis + c.order + 1)]
    return [cox_de_boor(x, knots, g, c.order) for g in range(c.n_basis)]


def layer_by_hand(layer, x, act):
    """One token, one edge at a time."""
    functions = [basis(number, layer.config) for number in x]
    coefficients = layer.edges.weight.view(len(layer.base.weight), len(x), -1)
    return torch.stack(
        [
            sum(
                weight * act(number) + sum(c * b for c, b in zip(edge, values, strict=True))
                for weight, edge, number, values in zip(weights, edges, x, functions, strict=True)
            )
            for weights, edges in zip(layer.base.weight, coefficients, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("options", "act"),
    [
        ({"n_basis": 8}, F.silu),
        ({"n_basis": 3, "order": 1, "base": "relu"}, F.relu),
        ({"n_basis": 3, "order": 2, "grid_range": 0.7}, F.silu),
        ({"n_basis": 6, "order": 5, "grid_range": 4.0}, F.silu),
        ({"n_basis": 7, "order": 4}, F.silu),
        ({"n_basis": 5, "basis": "rbf"}, F.silu),
        ({"n_basis": 2, "basis": "rbf", "base": "gelu"}, F.gelu),
    ],
)
@pytest.mark.parametrize(("d_model", "d_hidden", "seed"), [(3, 2, 0), (2, 4, 1)])
def test_outputs_and_gradients_are_those_of_the_published_equation(options, act, d_model, d_hidden, seed):
    torch.manual_seed(seed)
    block = KAN(d_model, d_hidden=d_hidden, **options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    x = 1.5 * torch.randn(1, 5, d_model, dtype=torch.float64)
    x = x.requires_grad_()
    y = block(x)
    z = torch.stack([layer_by_hand(block.down, layer_by_hand(block.up, token, act), act) for token in x[0]])[None]
    leaves = [x, *block.parameters()]
    close(y, z)
    for mine, brute in zip(grads(y, leaves), grads(z, leaves), strict=True):
        close(mine, brute)


def test_splines_sum_to_one_on_the_grid_and_vanish_far_beyond_it():
    layer = KAN(4, n_basis=9, order=3, grid_range=1.5).up
    x = torch.linspace(-1.5, 1.5, 101)
    torch.testing.assert_close(layer._basis(x).sum(-1), torch.ones(101))
    assert not layer._basis(torch.tensor([-30.0, 30.0])).any()


def test_as_many_parameters_as_an_mlp_when_the_width_is_left_out():
    for n_basis in (4, 8, 12):
        assert KAN(64, n_basis=n_basis).num_params() == pytest.approx(8 * 64 * 64, rel=0.05)


def test_the_first_layer_keeps_the_scale_of_its_input():
    torch.manual_seed(0)
    block = KAN(64, d_hidden=64)
    assert 0.3 < block.up(torch.randn(500, 64)).std().item() < 1 / math.sqrt(2)


def test_splines_without_an_interval_are_refused():
    with pytest.raises(UserError, match="n_basis=3 must be above order=3"):
        KAN(8, n_basis=3)


def test_it_keeps_the_contract_far_from_its_defaults():
    check_block(KAN, basis="rbf", n_basis=2, d_hidden=7)
    check_block(KAN, order=1, n_basis=12, grid_range=1.0, base="relu")


def grads(y, leaves):
    target = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad(((y - target) ** 2).sum(), leaves)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
