"""`low_rank` computes what transformers' LLaMA-style two-map perceptron computes with the products of its factors.

The peer is NemotronMLP (a perceptron of two maps without a gate), whose weights are A B. Its gradients of a product
W = A B give those of the factors by the chain rule, dA = dW Bᵀ and dB = Aᵀ dW.
"""

import pytest
import torch

from blocks.state.low_rank import LowRank
from doge_lab.errors import UserError
from doge_lab.testing import check_block

BLOCK = "state/low_rank"
ORACLE = "transformers' NemotronMLP with the products of the factors"


def pair(d_model, d_hidden, rank, act, seed):
    from transformers.models.nemotron import modeling_nemotron as peer

    torch.manual_seed(seed)
    ours = LowRank(d_model, d_hidden=d_hidden, rank=rank, activation=act).double()
    config = peer.NemotronConfig(
        hidden_size=d_model, intermediate_size=d_hidden, hidden_act=act, mlp_bias=False, num_attention_heads=1
    )
    theirs = peer.NemotronMLP(config).double()
    products = [(ours.up, theirs.up_proj), (ours.down, theirs.down_proj)]
    with torch.no_grad():
        for low_rank, dense in products:
            dense.weight.copy_(low_rank.a.weight @ low_rank.b.weight)
    return ours, theirs, products


@pytest.mark.parametrize("act", ["relu2", "silu", "gelu"])
@pytest.mark.parametrize(("d_model", "d_hidden", "rank", "seed"), [(12, 20, 3, 0), (9, 4, 9, 1), (16, 64, 1, 2)])
def test_outputs_and_gradients_are_theirs(d_model, d_hidden, rank, act, seed):
    ours, theirs, products = pair(d_model, d_hidden, rank, act, seed)
    x = torch.randn(3, 7, d_model, dtype=torch.float64)
    mine, their = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = ours(mine), theirs(their)
    close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    close(mine.grad, their.grad)
    for low_rank, dense in products:
        close(low_rank.a.weight.grad, dense.weight.grad @ low_rank.b.weight.t())
        close(low_rank.b.weight.grad, low_rank.a.weight.t() @ dense.weight.grad)


def test_the_products_start_with_the_variance_of_dense_layers():
    torch.manual_seed(0)
    block = LowRank(64, d_hidden=200, rank=16, n_layers=8)
    # the cut at two standard deviations takes 23 % of a factor's variance
    kept = 0.774**2
    up, down = (each.a.weight @ each.b.weight for each in (block.up, block.down))
    assert up.var().item() == pytest.approx(kept / 64, rel=0.1)
    assert down.var().item() == pytest.approx(kept / 200 / 16, rel=0.1)


def test_a_rank_that_restricts_nothing_is_refused():
    with pytest.raises(UserError, match="rank=17 must be at most d_model=16"):
        LowRank(16, rank=17)


def test_it_keeps_the_contract_at_both_ends():
    check_block(LowRank, rank=1, d_hidden=7, activation="relu2")
    check_block(LowRank, rank=32, activation="silu")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
