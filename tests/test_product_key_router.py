"""The router by product keys: what it reports, what it refuses, and that a token's query is its own."""

import pytest
import torch

from blocks.state.memory_plus import MemoryPlus
from blocks.state.peer import PEER
from blocks.state.product_key_memory import ProductKeyMemory
from blocks.state.ultra_mem import UltraMem
from doge_lab.errors import UserError
from doge_lab.layers.product_key_router import normalise

D_MODEL = 12


def tokens(*shape):
    return torch.randn(*shape, D_MODEL, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("block", [PEER, ProductKeyMemory, MemoryPlus])
def test_usage_counts_the_picks_and_the_balance_loss_follows_its_formula(block):
    torch.manual_seed(0)
    moe, x = block(D_MODEL, n_keys=5, n_heads=2, top_k=3, balance_loss_weight=0.5).double(), tokens(3, 20)
    moe(x)
    stats, scores = moe.router_stats, moe.routing(x).scores.detach()
    picks = torch.zeros(25, dtype=torch.float64)
    for query in scores:
        picks[query.topk(3).indices] += 1
    usage = picks / picks.sum()
    torch.testing.assert_close(stats.usage.double(), usage, rtol=1e-6, atol=0)
    balance = 25 * (usage * scores.softmax(-1).mean(0)).sum()
    assert stats.balance_loss.item() == pytest.approx(balance.item(), rel=1e-6)
    assert stats.loss.item() == pytest.approx(0.5 * balance.item(), rel=1e-6)


def test_without_weight_or_gradients_no_loss_is_computed():
    for weight, grad in ((0.0, True), (0.5, False)):
        block = PEER(D_MODEL, balance_loss_weight=weight).double()
        with torch.set_grad_enabled(grad):
            block(tokens(1, 9))
        assert block.router_stats.loss == block.router_stats.balance_loss == 0
        assert not block.router_stats.loss.requires_grad


def test_the_size_of_a_token_changes_no_choice_under_a_norm():
    block, x = PEER(D_MODEL, query_norm="rms").double(), tokens(2, 9)
    torch.testing.assert_close(block.routing(100 * x).weights, block.routing(x).weights, rtol=1e-4, atol=1e-4)
    bare = PEER(D_MODEL, query_norm="none").double()
    assert (bare.routing(100 * x).weights - bare.routing(x).weights).abs().max() > 0.1


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_have_unit_size_and_half_precision_keeps_its_type(norm):
    x = 3 + 5 * tokens(4)
    torch.testing.assert_close(
        normalise(x, norm, -1).square().mean(-1), torch.ones(4, dtype=x.dtype), rtol=1e-4, atol=0
    )
    mean = normalise(x, norm, -1).mean(-1).abs().max()
    assert (mean < 1e-9) == (norm == "layer")
    assert normalise(x.bfloat16(), norm, -1).dtype == torch.bfloat16
    assert normalise(0 * x, norm, -1).isfinite().all()


@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (PEER, {"n_keys": 2, "top_k": 5}, "n_keys"),
        (PEER, {"top_k": 1}, "normalisation"),
        (ProductKeyMemory, {"d_query": 7}, "even"),
        (ProductKeyMemory, {"d_query": 2, "query_norm": "layer"}, "d_query"),
        (MemoryPlus, {"n_keys": 1}, "top_k"),
        (UltraMem, {"n_candidates": 2}, "n_candidates"),
        (UltraMem, {"rank": 3, "d_query": 8}, "rank"),
        (UltraMem, {"d_query": 4}, "d_query"),
        (UltraMem, {"n_keys": 4, "value_expansion": 5}, "value_expansion"),
        (UltraMem, {"top_k": 1}, "normalisation"),
    ],
)
def test_what_cannot_work_is_refused(block, options, message):
    with pytest.raises(UserError, match=message):
        block(D_MODEL, **options)


@pytest.mark.parametrize("d_model", [32, 64])
@pytest.mark.parametrize("block", [PEER, ProductKeyMemory, MemoryPlus, UltraMem])
def test_every_value_of_the_search_space_builds(block, d_model):
    assert block.width_option not in block.search_space
    for name, hole in block.search_space.items():
        for value in hole["choice"]:
            assert block(d_model, **{name: value})(torch.randn(1, 2, d_model)).isfinite().all()
