"""`moe` computes what the sparse blocks of Mixtral, OLMoE and Qwen2-MoE in transformers compute, gradients included.

Their fused weights hold the gate above the up projection, [E, 2 F, D], and the down projection as [E, D, F].
"""

import pytest
import torch
from torch import nn

from blocks.state.moe import MoE

BLOCK = "state/moe"
ORACLE = "transformers' sparse blocks of Mixtral, OLMoE and Qwen2-MoE"

D_MODEL, D_EXPERT, EXPERTS, TOP_K, SHARED = 16, 6, 5, 2, 3


def mixtral():
    from transformers.models.mixtral import modeling_mixtral as peer

    config = peer.MixtralConfig(
        hidden_size=D_MODEL,
        intermediate_size=D_EXPERT,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        router_jitter_noise=0.0,
    )
    return peer.MixtralSparseMoeBlock(config), {}


def olmoe(renormalised):
    from transformers.models.olmoe import modeling_olmoe as peer

    config = peer.OlmoeConfig(
        hidden_size=D_MODEL,
        intermediate_size=D_EXPERT,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=renormalised,
    )
    return peer.OlmoeSparseMoeBlock(config), {"normalisation": "softmax_chosen" if renormalised else "softmax_all"}


def qwen2():
    from transformers.models.qwen2_moe import modeling_qwen2_moe as peer

    config = peer.Qwen2MoeConfig(
        hidden_size=D_MODEL,
        moe_intermediate_size=D_EXPERT,
        shared_expert_intermediate_size=SHARED * D_EXPERT,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=False,
    )
    block = peer.Qwen2MoeSparseMoeBlock(config)
    block.shared_expert_gate = Open()
    return block, {"normalisation": "softmax_all", "n_shared_experts": SHARED}


class Open(nn.Module):
    """A gate whose sigmoid is 1: ours has none."""

    def forward(self, x):
        return x.new_full((*x.shape[:-1], 1), 1e3)


PEERS = {
    "mixtral": mixtral,
    "olmoe": lambda: olmoe(False),
    "olmoe_renormalised": lambda: olmoe(True),
    "qwen2_moe": qwen2,
}


@pytest.fixture(params=PEERS)
def pair(request):
    """Our block and theirs with the same random weights."""
    theirs, options = PEERS[request.param]()
    torch.manual_seed(0)
    ours = MoE(D_MODEL, n_experts=EXPERTS, top_k=TOP_K, d_expert=D_EXPERT, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([ours.gate, ours.up], dim=1))
        theirs.experts.down_proj.copy_(ours.down.transpose(1, 2))
        if ours.shared is not None:
            for name in ("gate", "up", "down"):
                getattr(theirs.shared_expert, f"{name}_proj").weight.copy_(getattr(ours.shared, name).weight)
    return ours, theirs


@pytest.mark.usefixtures("experts_computed")
def test_outputs_and_gradients_are_theirs(pair):
    ours, theirs = pair
    x = torch.randn(2, 15, D_MODEL)
    mine, their = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = ours(mine), theirs(their)
    close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    close(mine.grad, their.grad)
    close(ours.router.weight.grad, theirs.gate.weight.grad)
    close(torch.cat([ours.gate.grad, ours.up.grad], dim=1), theirs.experts.gate_up_proj.grad)
    close(ours.down.grad, theirs.experts.down_proj.grad.transpose(1, 2))
    if ours.shared is not None:
        close(ours.shared.gate.weight.grad, theirs.shared_expert.gate_proj.weight.grad)


def test_the_balance_loss_is_theirs_per_choice(pair):
    """Transformers counts picks per token, so that its balanced value is top_k; ours is 1 whatever top_k."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    ours, _ = pair
    x = torch.randn(2, 15, D_MODEL)
    ours(x)
    theirs = load_balancing_loss_func((ours.router(x).flatten(0, 1),), EXPERTS, TOP_K)
    close(TOP_K * ours.router_stats.balance_loss, theirs)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
