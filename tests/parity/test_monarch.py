"""`monarch` computes what a perceptron with the dense matrices that it stands for computes, gradients included.

Those are built from the definition: block-diagonal matrices written block by block, and permutations entry by entry.
"""

import pytest
import torch
from torch.nn import functional as F

from blocks.state.monarch import Monarch
from doge_lab.errors import UserError
from doge_lab.testing import check_block

BLOCK = "state/monarch"
ORACLE = "the dense matrix Pᵀ L P R, written out in float64"


def block_diagonal(blocks):
    """From blocks held as [input, output] to one matrix [outputs, inputs]."""
    n, d_in, d_out = blocks.shape
    dense = blocks.new_zeros(n * d_out, n * d_in)
    for k in range(n):
        for i in range(d_in):
            for o in range(d_out):
                dense[k * d_out + o, k * d_in + i] = blocks[k, i, o]
    return dense


def deal(width, n_blocks):
    """P [width, width]: channel i K + j goes to place i of block j."""
    p = torch.zeros(width, width, dtype=torch.float64)
    for i in range(width // n_blocks):
        for j in range(n_blocks):
            p[j * (width // n_blocks) + i, i * n_blocks + j] = 1
    return p


def dense(linear):
    right, left = block_diagonal(linear.right), block_diagonal(linear.left)
    n_blocks = len(linear.right)
    return deal(len(left), n_blocks).t() @ left @ deal(len(right), n_blocks) @ right


@pytest.mark.parametrize("act", ["gelu", "relu2"])
@pytest.mark.parametrize(
    ("d_model", "d_hidden", "n_blocks", "seed"),
    [(16, 32, 4, 0), (12, 6, 2, 1), (12, 20, 4, 2), (8, 24, 8, 3), (6, 5, 1, 4)],
)
def test_outputs_and_gradients_are_those_of_the_dense_matrices(d_model, d_hidden, n_blocks, act, seed):
    torch.manual_seed(seed)
    block = Monarch(d_model, d_hidden=d_hidden, n_blocks=n_blocks, activation=act).double()
    x = torch.randn(3, 5, d_model, dtype=torch.float64, requires_grad=True)
    function = {"gelu": F.gelu, "relu2": lambda hidden: hidden.clamp(min=0) ** 2}[act]
    y = block(x)
    z = function(x @ dense(block.up).t()) @ dense(block.down).t()
    close(y, z)
    leaves = [x, *block.parameters()]
    for mine, brute in zip(grads(y, leaves), grads(z, leaves), strict=True):
        close(mine, brute)


def test_the_matrices_start_with_the_variance_of_dense_layers_and_are_full():
    torch.manual_seed(0)
    block = Monarch(64, n_blocks=4, n_layers=8).double()
    kept = 0.774**2  # the cut at two standard deviations takes 23 % of a factor's variance
    for linear, variance in ((block.up, kept / 64), (block.down, kept / 256 / 16)):
        matrix = dense(linear)
        assert (matrix != 0).all()
        assert matrix.var().item() == pytest.approx(variance, rel=0.1)


def test_its_parameters_are_those_it_says():
    assert Monarch(64, n_blocks=4).num_params() == 2 * 64 * (64 + 256) // 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_blocks": 3}, "d_model=16 must be divisible by n_blocks=3"),
        ({"n_blocks": 4, "d_hidden": 10}, "d_hidden=10 must be a multiple of n_blocks=4, such as 12"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Monarch(16, **options)


def test_it_keeps_the_contract_at_both_ends():
    check_block(Monarch, n_blocks=1, d_hidden=5)
    check_block(Monarch, n_blocks=16, activation="relu2")


def grads(y, leaves):
    target = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad(((y - target) ** 2).sum(), leaves)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
