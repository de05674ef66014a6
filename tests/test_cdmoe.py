"""CDMoE: both forms of both implementations, its costs, and what it refuses."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blocks.state.cdmoe import CDMoE
from doge_lab.errors import UserError
from doge_lab.ops import picks
from doge_lab.ops.dispatch import REFERENCE, using
from doge_lab.testing import check_block

D_MODEL = 16


def block(**options):
    torch.manual_seed(0)
    return CDMoE(D_MODEL, **{"d_cross_domain": 12, "n_experts": 25, **options})


def tokens(batch=3, length=50, dtype=torch.float64):
    return torch.randn(batch, length, D_MODEL, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_the_usage_in_the_design_runs_as_written():
    moe = CDMoE(
        d_model=64,
        act_fn="silu",
        d_cross_domain=256,
        d_private_expert=64,
        n_experts=64,
        n_experts_heads=1,
        n_experts_per_head=2,
    )
    y = moe(torch.rand(2, 16, 64))
    assert y.shape == (2, 16, 64)


OPTIONS = [
    {},
    {"form": "serial"},
    {"form": "serial", "weigh": "before_activation", "n_experts_heads": 2},
    {"n_experts_heads": 3, "n_experts_per_head": 5, "cross_domain": "glu", "act_fn": "gelu"},
    {"normalisation": "softmax_all", "balance_loss_weight": 0.5},
    {"normalisation": "sigmoid", "n_experts_per_head": 1, "d_private_expert": 4},
    {"n_experts_per_head": 25, "balance_loss_weight": 0.1, "n_experts_heads": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_fast_is_the_reference(monkeypatch, options):
    monkeypatch.setattr(picks, "_FEW_FLOATS", 0)
    results = []
    for form in (using(REFERENCE), nullcontext()):
        moe, x = block(**options).double(), tokens().requires_grad_()
        with form:
            y = moe(x)
        stats = moe.router_stats
        target = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        grads = torch.autograd.grad(((y - target) ** 2).sum() + stats.loss, [x, *moe.parameters()])
        results.append([y, stats.loss, stats.balance_loss, stats.usage, *grads])
    for reference, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-11, atol=1e-11, check_dtype=False)
    assert all(grad.any() for grad in results[0][4:])


def test_usage_counts_the_picks_and_the_balance_loss_follows_its_formula():
    moe, x = block(n_experts_heads=2, n_experts_per_head=3, balance_loss_weight=0.5).double(), tokens()
    moe(x)
    stats, z = moe.router_stats, x.flatten(0, 1)
    picks, probability = torch.zeros(25), torch.zeros(25, dtype=z.dtype)
    query = moe.router.query(z).view(-1, 2, 2, D_MODEL // 4)  # [N, head, half, channel]
    for token in range(len(z)):
        for head in range(2):
            rows, columns = (moe.router.keys[half, head] @ query[token, head, half] for half in (0, 1))
            scores = torch.stack([rows[e // 5] + columns[e % 5] for e in range(25)])
            picks[scores.topk(3).indices] += 1
            probability += scores.softmax(0).detach() / (2 * len(z))
    torch.testing.assert_close(stats.usage, picks / picks.sum())
    balance = 25 * (picks / picks.sum() * probability).sum()
    assert stats.balance_loss.item() == pytest.approx(balance.item(), rel=1e-6)
    assert stats.loss.item() == pytest.approx(0.5 * balance.item(), rel=1e-6)


def test_without_weight_or_gradients_no_loss_is_computed():
    for weight, grad in ((0.0, True), (0.5, False)):
        moe = block(balance_loss_weight=weight).double()
        with torch.set_grad_enabled(grad):
            moe(tokens())
        assert moe.router_stats.loss == moe.router_stats.balance_loss == 0
        assert not moe.router_stats.loss.requires_grad


def test_published_keys_start_at_zero_and_choose_alike():
    published, working = block(fidelity="published"), block()
    assert not published.router.keys.any()
    assert working.router.keys.any()
    for moe in (published, working):
        moe.double()(tokens())
    assert (published.router_stats.usage > 0).sum() == 2
    assert (working.router_stats.usage > 0).sum() > 10
    assert set(published.known_faults()) == {"router_usage"}
    assert not working.known_faults()


def test_the_published_query_projection_gets_no_gradient_on_the_first_step():
    for fidelity, learns in (("published", False), ("working", True)):
        moe = block(fidelity=fidelity).double()
        moe(tokens()).square().sum().backward()
        assert moe.router.query.weight.grad.any() == learns
        assert moe.router.keys.grad.any()


@pytest.mark.parametrize("form", [lambda: using(REFERENCE), nullcontext], ids=["reference", "fast"])
@pytest.mark.parametrize("options", OPTIONS[:4])
def test_declared_flops_are_those_of_a_decoding_step(form, options):
    moe = block(**options)
    with torch.no_grad(), form(), FlopCounterMode(display=False) as counter:
        moe(tokens(1, 1, torch.float32))
    assert moe.flops_per_token(1) == counter.get_total_flops()


def test_declared_flops_are_still_counted_where_one_token_picks_many_rows():
    moe = CDMoE(256, n_experts=256, n_experts_heads=4, n_experts_per_head=16)
    assert picks._FEW_FLOATS < 4 * 16 * 256
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        moe(torch.randn(1, 1, 256))
    assert moe.flops_per_token(1) == counter.get_total_flops()


def test_parameters_are_those_of_the_definition():
    moe = CDMoE(32, d_cross_domain=10, d_private_expert=8, n_experts=64, n_experts_heads=3, n_experts_per_head=4)
    shared, query, keys, tables = 2 * 32 * 10, 32 * 3 * 8, 3 * 8 * 8, 2 * 64 * 32
    assert moe.num_params() == shared + query + keys + tables
    assert moe.active_params() == shared + query + keys + 2 * 3 * 4 * 32


def test_the_cross_domain_may_be_one_unit_wide():
    assert block(d_cross_domain=1).shared.up.out_features == 1


def test_widths_that_are_left_out():
    assert CDMoE(64).shared.up.out_features == 256
    assert CDMoE(64).router.keys.shape == (2, 1, 8, 16)
    assert CDMoE(6).router.keys.shape == (2, 1, 8, 1)
    assert CDMoE(64, form="serial").router.keys.shape == (2, 1, 8, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_experts": 50}, "n_experts: n_experts=50 must be a square.* 49 and 64"),
        ({"n_experts": 4, "n_experts_per_head": 5}, "n_experts_per_head=5 must be at most n_experts=4"),
        ({"n_experts_per_head": 1}, "softmax_chosen with n_experts_per_head=1 .* softmax_all or sigmoid"),
        ({"d_private_expert": 7}, "d_private_expert=7 must be even"),
        ({"form": "serial", "d_private_expert": 8}, "needs d_private_expert = d_model = 16, not 8; leave it out"),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(options, message):
    with pytest.raises(UserError, match=message):
        block(**options)


@pytest.mark.parametrize("options", [{"fidelity": "published"}, {"form": "serial"}, OPTIONS[3]])
def test_other_forms_sign_the_contract_too(options):
    check_block(CDMoE, **options)
