"""The mixture of experts: its choices, its losses, and its two ways of computing."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from blocks.state.moe import MoE
from doge_lab.errors import UserError
from doge_lab.ops.dispatch import REFERENCE, using
from doge_lab.ops.expert_mlps import expert_mlps
from doge_lab.testing import check_block

D_MODEL = 16


def block(**options):
    torch.manual_seed(0)
    return MoE(D_MODEL, **{"n_experts": 6, "top_k": 2, "d_expert": 5, **options})


def tokens(n=40):
    return torch.randn(2, n // 2, D_MODEL, generator=torch.Generator().manual_seed(1))


def expert_output(moe, e, x):
    hidden = F.linear(x, moe.up[e])
    gated = F.silu(hidden) if moe.gate is None else F.silu(F.linear(x, moe.gate[e])) * hidden
    return gated @ moe.down[e]


def by_hand(moe, x):
    """One token and one expert at a time."""
    c, outputs = moe.config, []
    for token in x.flatten(0, 1):
        logits = moe.router(token)
        chosen = sorted(range(c.n_experts), key=lambda e: -logits[e].item())[: c.top_k]
        if c.normalisation == "sigmoid":
            weights = {e: logits[e].sigmoid() for e in chosen}
        else:
            total = torch.logsumexp(logits if c.normalisation == "softmax_all" else logits[chosen], 0)
            weights = {e: (logits[e] - total).exp() for e in chosen}
        y = sum(weights[e] * expert_output(moe, e, token) for e in chosen)
        outputs.append(y if moe.shared is None else y + moe.shared(token))
    return torch.stack(outputs).view_as(x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"expert": "mlp"},
        {"normalisation": "softmax_all"},
        {"normalisation": "sigmoid", "top_k": 1},
        {"n_shared_experts": 2},
        {"top_k": 6},
    ],
)
def test_it_computes_its_equations(options):
    moe, x = block(**options), tokens()
    torch.testing.assert_close(moe(x), by_hand(moe, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"expert": "mlp", "n_experts": 3}, {"top_k": 1, "normalisation": "sigmoid"}])
def test_every_expert_and_chosen_experts_agree(options):
    results = []
    for form in expert_mlps.forms:
        moe, x = block(**options).double(), tokens().double().requires_grad_()
        with using(form, expert_mlps):
            y = moe(x)
        target = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        results.append(
            [y, *torch.autograd.grad(((y - target) ** 2).sum() + moe.router_stats.loss, [x, *moe.parameters()])]
        )
    for dense, sparse in zip(*results, strict=True):
        torch.testing.assert_close(dense, sparse, rtol=1e-12, atol=1e-12)


def test_the_choice_between_the_two_follows_the_amount_of_work():
    moe = block()

    def form(n_tokens):
        x, chosen = torch.empty(n_tokens, moe.d_model, device="meta"), torch.empty(2, n_tokens, device="meta")
        return expert_mlps.form(x, chosen, chosen, moe._experts.tables, moe.act)

    assert form(40) == REFERENCE
    assert form(1) != REFERENCE, "a decoding step must not pay for experts that it does not use"
    assert form(1_000_000) != REFERENCE


@pytest.mark.parametrize("form", expert_mlps.forms)
def test_experts_not_chosen_weigh_exactly_nothing(form):
    moe, x = block(), tokens(2)[:1]
    with using(form, expert_mlps):
        y = moe(x)
    unused = moe.router_stats.usage == 0
    assert unused.sum() == 4
    with torch.no_grad():
        for weight in (moe.gate, moe.up, moe.down):
            weight[unused] *= 1e6
    with using(form, expert_mlps):
        assert torch.equal(moe(x), y)


def test_balance_loss_and_usage_follow_their_formulas():
    moe, x = block(balance_loss_weight=0.5, z_loss_weight=0.25), tokens()
    moe(x)
    stats, logits = moe.router_stats, moe.router(x).flatten(0, 1)
    picks, probability, z = [0] * 6, [0.0] * 6, 0.0
    for row in logits.tolist():
        for e in sorted(range(6), key=lambda e: -row[e])[:2]:
            picks[e] += 1 / (2 * len(logits))
        total = sum(math.exp(score) for score in row)
        z += math.log(total) ** 2 / len(logits)
        probability = [p + math.exp(score) / total / len(logits) for p, score in zip(probability, row, strict=True)]
    balance = 6 * sum(f * p for f, p in zip(picks, probability, strict=True))
    assert stats.usage.tolist() == pytest.approx(picks)
    assert stats.balance_loss.item() == pytest.approx(balance, rel=1e-5)
    assert stats.z_loss.item() == pytest.approx(z, rel=1e-5)
    assert stats.loss.item() == pytest.approx(0.5 * balance + 0.25 * z, rel=1e-5)


def test_balance_loss_is_one_when_balanced_and_the_number_of_experts_when_collapsed():
    moe = block(normalisation="softmax_all", top_k=1)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[:, :6] = 30 * torch.eye(6)
    moe(torch.eye(6, D_MODEL)[None])
    assert moe.router_stats.balance_loss.item() == pytest.approx(1, rel=1e-4)
    moe(torch.eye(6, D_MODEL)[None, :1].expand(1, 6, -1))
    assert moe.router_stats.balance_loss.item() == pytest.approx(6, rel=1e-4)


@pytest.mark.parametrize("weight", ["balance_loss_weight", "z_loss_weight"])
def test_auxiliary_losses_reach_the_router_and_do_not_accumulate(weight):
    moe, x = block(**{"balance_loss_weight": 0, weight: 0.5}), tokens()
    losses, grads = [], []
    for _ in range(2):
        moe(x)
        losses.append(moe.router_stats.loss.item())
        grads.append(torch.autograd.grad(moe.router_stats.loss, moe.router.weight)[0])
    assert losses[0] == losses[1]
    assert torch.equal(*grads)
    assert grads[0].any()


@pytest.mark.parametrize("options", [{}, {"expert": "mlp", "n_shared_experts": 2}, {"top_k": 6}])
def test_declared_costs_are_those_of_a_decoding_step(options):
    moe = block(**options)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        moe(tokens(2)[:1])
    assert moe.flops_per_token(1) == counter.get_total_flops()
    matrices, n_shared = (2 if options.get("expert") == "mlp" else 3), options.get("n_shared_experts", 0)
    perceptrons = options.get("top_k", 2) + n_shared
    assert moe.active_params() == 6 * D_MODEL + perceptrons * matrices * 5 * D_MODEL


def test_losses_without_weight_are_not_computed():
    moe = block(balance_loss_weight=0)
    moe(tokens())
    stats = moe.router_stats
    assert (stats.loss, stats.balance_loss, stats.z_loss) == (0, 0, 0)
    assert not stats.loss.requires_grad


def test_as_wide_as_a_dense_block_when_the_width_is_left_out():
    assert MoE(24, n_experts=4, top_k=2).up.shape == (4, 32, 24)
    assert MoE(24, n_experts=4, top_k=2, expert="mlp").up.shape == (4, 48, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 7}, "top_k=7 must be at most n_experts=6"),
        ({"top_k": 1}, "normalisation: softmax_chosen with top_k=1 .* softmax_all or sigmoid"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        block(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"n_experts": 4, "top_k": 1, "normalisation": "sigmoid", "expert": "mlp"},
        {"n_experts": 16, "top_k": 4, "n_shared_experts": 1, "z_loss_weight": 0.01},
    ],
)
def test_other_forms_sign_the_contract_too(options):
    check_block(MoE, **options)
