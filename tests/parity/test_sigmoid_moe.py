"""`sigmoid_moe` computes what transformers' DeepseekV3MoE with one group of experts computes, gradients included.

Its fused weights hold the gate above the up projection, [E, 2 F, D], and the down projection as [E, D, F].
"""

import pytest
import torch

from blocks.state.sigmoid_moe import SigmoidMoE
from doge_lab.errors import UserError
from doge_lab.testing import check_block

BLOCK = "state/sigmoid_moe"
ORACLE = "transformers' DeepseekV3MoE"

SIZES = [(16, 6, 5, 2, 1), (12, 3, 16, 6, 2), (8, 9, 4, 4, 1)]
"""d_model, d_expert, n_experts, top_k, n_shared_experts."""


def pair(size, normalised, scale, seed):
    """Our block and theirs with the same random weights and biases."""
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as peer

    d_model, d_expert, n_experts, top_k, n_shared = size
    torch.manual_seed(seed)
    ours = SigmoidMoE(
        d_model,
        n_experts=n_experts,
        top_k=top_k,
        d_expert=d_expert,
        n_shared_experts=n_shared,
        normalisation="sigmoid_chosen" if normalised else "sigmoid",
        scale=scale,
    )
    config = peer.DeepseekV3Config(
        hidden_size=d_model,
        moe_intermediate_size=d_expert,
        n_routed_experts=n_experts,
        num_experts_per_tok=top_k,
        n_shared_experts=n_shared,
        n_group=1,
        topk_group=1,
        norm_topk_prob=normalised,
        routed_scaling_factor=scale,
    )
    theirs = peer.DeepseekV3MoE(config)
    with torch.no_grad():
        for tensor in (*ours.parameters(), ours.selection_bias):
            tensor.normal_(std=0.5)
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.gate.e_score_correction_bias.copy_(ours.selection_bias)
        theirs.experts.gate_up_proj.copy_(torch.cat([ours.gate, ours.up], dim=1))
        theirs.experts.down_proj.copy_(ours.down.transpose(1, 2))
        for name in ("gate", "up", "down"):
            getattr(theirs.shared_experts, f"{name}_proj").weight.copy_(getattr(ours.shared, name).weight)
    return ours, theirs


@pytest.mark.usefixtures("experts_computed")
@pytest.mark.parametrize(("normalised", "scale", "seed"), [(True, 2.5, 0), (False, 1.0, 1)])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_are_theirs(size, normalised, scale, seed):
    ours, theirs = pair(size, normalised, scale, seed)
    x = torch.randn(2, 15, size[0])
    mine, their = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = ours(mine), theirs(their)
    close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    close(mine.grad, their.grad)
    close(ours.router.weight.grad, theirs.gate.weight.grad)
    close(torch.cat([ours.gate.grad, ours.up.grad], dim=1), theirs.experts.gate_up_proj.grad)
    close(ours.down.grad, theirs.experts.down_proj.grad.transpose(1, 2))
    for name in ("gate", "up", "down"):
        close(getattr(ours.shared, name).weight.grad, getattr(theirs.shared_experts, f"{name}_proj").weight.grad)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_bfloat16_model_routes_in_float32_as_theirs_does(seed):
    ours, theirs = (each.bfloat16() for each in pair(SIZES[1], True, 2.5, seed))
    x = torch.randn(1, 64, 12, dtype=torch.bfloat16)
    _, chosen, weights = ours._route(x[0])
    _, their_weights, their_chosen = theirs.gate(x)
    order, their_order = chosen.t().argsort(-1), their_chosen.argsort(-1)
    assert torch.equal(chosen.t().gather(-1, order), their_chosen.gather(-1, their_order))
    close(weights.t().gather(-1, order).float(), their_weights.gather(-1, their_order), 1e-2)


def test_the_bias_follows_the_load_since_the_last_step():
    torch.manual_seed(0)
    block = SigmoidMoE(8, n_experts=6, top_k=2, bias_update_rate=0.01).train()
    picks = [0] * 6
    for seed in range(3):
        x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(seed))
        block(x)
        for token in x.flatten(0, 1):
            for e in block.router(token).topk(2).indices.tolist():
                picks[e] += 1
    assert not block.selection_bias.any(), "the bias moves before the step"
    block.after_step()
    mean = sum(picks) / 6
    assert block.selection_bias.tolist() == pytest.approx([0.01 * ((n < mean) - (n > mean)) for n in picks])
    before = block.selection_bias.clone()
    block.after_step()
    assert torch.equal(block.selection_bias, before), "a step without tokens moves the bias"
    block.eval()(x)
    block.after_step()
    assert torch.equal(block.selection_bias, before), "tokens of an evaluation move the bias"


def test_the_bias_balances_a_router_that_favours_one_expert():
    """And the weights of the chosen stay those of the scores."""
    torch.manual_seed(0)
    block = SigmoidMoE(16, n_experts=8, top_k=2, bias_update_rate=0.01).train()
    with torch.no_grad():
        block.router.weight[0] = 0.0
        block.router.weight[0, 0] = 4.0
    x = torch.randn(1, 400, 16)
    x[..., 0] = 1.0
    usage = []
    for _ in range(150):
        block(x)
        usage.append(block.router_stats.usage)
        block.after_step()
    assert usage[0][0] == 0.5
    assert (usage[-1] - 1 / 8).abs().max() < 0.04
    assert block.state_dict()["selection_bias"][0] < -0.1


def test_a_choice_that_teaches_the_router_nothing_is_refused():
    with pytest.raises(UserError, match="sigmoid_chosen with top_k=1"):
        SigmoidMoE(8, top_k=1)
    with pytest.raises(UserError, match="top_k=17 must be at most n_experts=16"):
        SigmoidMoE(8, top_k=17)


def test_it_keeps_the_contract_far_from_its_defaults():
    check_block(SigmoidMoE, n_experts=3, top_k=1, normalisation="sigmoid", expert="mlp", n_shared_experts=0)
    check_block(SigmoidMoE, n_experts=64, top_k=8, d_expert=2, bias_update_rate=0.01, scale=1.0)


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0.1 * tolerance * expected.abs().max().item())
