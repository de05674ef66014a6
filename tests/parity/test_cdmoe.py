"""`cdmoe` computes what a plain loop over its published equations computes, and what transformers' DogeCDMoE computes.

DogeCDMoE splits the router's scores of a batch across its tokens instead of into two halves of keys; its scores are
handed over so arranged that this split comes out right. It is also compared as it is, on a single token.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blocks.state.cdmoe import CDMoE

BLOCK = "state/cdmoe"
ORACLE = "the published equations in loops, and transformers' DogeCDMoE with its split put right"

D_MODEL, D_HIDDEN, KEYS, PER_HEAD = 12, 14, 5, 3


class Halves(nn.Module):
    """The router's scores [B, T, 2 n], laid out so that `view(2, B * T, n)` gives the two halves of every token."""

    def __init__(self, router):
        super().__init__()
        self.router = router

    def forward(self, x):
        scores = self.router(x)
        return scores.view(-1, 2, KEYS).transpose(0, 1).reshape_as(scores)


@pytest.fixture
def pair():
    """Our parallel form and theirs with the same random weights: keys of ones and zeros hand the query through."""
    from transformers.models.doge import modeling_doge as peer

    config = peer.DogeConfig(
        hidden_size=D_MODEL,
        intermediate_size=D_HIDDEN,
        num_experts=KEYS * KEYS,
        num_experts_per_tok=PER_HEAD,
        norm_topk_prob=False,
        is_moe=True,
        num_attention_heads=2,
    )
    theirs = peer.DogeCDMoE(config)
    torch.manual_seed(0)
    ours = CDMoE(
        D_MODEL,
        d_cross_domain=D_HIDDEN,
        cross_domain="glu",
        d_private_expert=2 * KEYS,
        n_experts=KEYS * KEYS,
        n_experts_per_head=PER_HEAD,
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
        ours.router.keys.copy_(torch.eye(KEYS).expand_as(ours.router.keys))
        for mine, their in weights(ours, theirs):
            their.copy_(mine)
    return ours, theirs


def weights(ours, theirs):
    return [
        (ours.router.query.weight, theirs.router_gate.weight),
        (ours.down, theirs.down_embed.weight),
        (ours.up, theirs.up_embed.weight),
        *(
            (getattr(ours.shared, name).weight, getattr(theirs, f"{name}_proj").weight)
            for name in ("gate", "up", "down")
        ),
    ]


def test_outputs_and_gradients_are_those_of_transformers_with_the_split_put_right(pair):
    ours, theirs = pair
    shared = weights(ours, theirs)
    theirs.router_gate = Halves(theirs.router_gate)
    x = torch.randn(3, 11, D_MODEL)
    mine, their = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = ours(mine), theirs(their)[0]
    close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    close(mine.grad, their.grad)
    for my_weight, their_weight in shared:
        close(my_weight.grad, their_weight.grad)


def test_a_single_token_is_that_of_transformers_as_it_is(pair):
    ours, theirs = pair
    x = torch.randn(1, 1, D_MODEL)
    close(ours(x), theirs(x)[0])


def test_several_tokens_are_not(pair):
    """Once transformers routes each token by itself, the rearrangement above has to go."""
    ours, theirs = pair
    x = torch.randn(1, 4, D_MODEL)
    assert (ours(x) - theirs(x)[0]).abs().max() > 1e-2


def looped(moe, token):
    """The equations of the published module, one token, head and expert at a time."""
    c, n = moe.config, math.isqrt(moe.config.n_experts)
    act = {"silu": F.silu, "relu": F.relu}[c.act_fn]
    hidden = act(moe.shared.up.weight @ token)
    if c.cross_domain == "glu":
        hidden = act(moe.shared.gate.weight @ token) * (moe.shared.up.weight @ token)
    shared = moe.shared.down.weight @ hidden
    z = shared if c.form == "serial" else token
    y = torch.zeros_like(token) if c.form == "serial" else shared
    halves = (moe.router.query.weight @ z).view(c.n_experts_heads, 2, -1)
    keys = moe.router.keys  # [half, head, key, channel]
    for head in range(c.n_experts_heads):
        scores = [
            keys[0, head, e // n] @ halves[head, 0] + keys[1, head, e % n] @ halves[head, 1] for e in range(n * n)
        ]
        chosen = sorted(range(n * n), key=lambda e: -scores[e].item())[: c.n_experts_per_head]
        probabilities = torch.stack([scores[e] for e in chosen]).softmax(0)
        for e, probability in zip(chosen, probabilities, strict=True):
            dot = z @ moe.down[e]
            a = act(dot * probability) if c.weigh == "before_activation" else act(dot) * probability
            y = y + a * moe.up[e]
    return y


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    "options",
    [
        {"form": "serial", "weigh": "before_activation"},
        {"form": "serial", "weigh": "before_activation", "n_experts_heads": 2, "act_fn": "relu"},
        {"form": "parallel", "weigh": "after_activation", "cross_domain": "glu", "d_private_expert": 8},
        {"form": "parallel", "weigh": "after_activation", "cross_domain": "glu", "n_experts_heads": 3},
    ],
)
def test_outputs_and_gradients_are_those_of_the_published_equations(options):
    torch.manual_seed(0)
    moe = CDMoE(D_MODEL, d_cross_domain=D_HIDDEN, n_experts=16, n_experts_per_head=3, **options)
    moe = moe.double()
    x = torch.randn(2, 6, D_MODEL, dtype=torch.float64)
    y = moe(x)
    z = torch.stack([looped(moe, token) for token in x.flatten(0, 1)]).view_as(x)
    close(y, z, 1e-10)
    parameters = list(moe.parameters())
    mine = torch.autograd.grad(y.square().sum(), parameters)
    loops = torch.autograd.grad(z.square().sum(), parameters)
    for my_grad, loop_grad in zip(mine, loops, strict=True):
        close(my_grad, loop_grad, 1e-10)


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
