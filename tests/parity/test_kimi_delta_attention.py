"""`kimi_delta_attention` computes what transformers' Kimi Linear module computes: outputs, gradients, decoding."""

import pytest
import torch

from blocks.sequence.kimi_delta_attention import KimiDeltaAttention
from parity.compare import assert_close, assert_same_decoding, assert_same_forward_and_backward

BLOCK = "sequence/kimi_delta_attention"
ORACLE = "transformers' KimiLinearDeltaAttention"
D_MODEL, TOKENS = 20, 21
SHAPES = {"two heads": (2, 6, 4), "one head": (1, 9, 2), "many heads": (5, 3, 3)}  # n_heads, head_dim, kernel_size
GATES = {"weak": -6.0, "ordinary": 0.0, "strong": 3.0}  # added to the decay's bias
NAMES = {
    "strength.weight": "b_proj.weight",
    "step_down.weight": "forget_gate.f_a_proj.weight",
    "step_up.weight": "forget_gate.f_b_proj.weight",
    "gate_down.weight": "g_a_proj.weight",
    "gate_up.weight": "g_b_proj.weight",
    "norm.weight": "o_norm.weight",
    "out.weight": "o_proj.weight",
}


@pytest.fixture(params=SHAPES)
def pair(request, gates):
    """Our block and theirs with the same random weights, and their configuration."""
    from transformers.models.kimi_linear import modeling_kimi_linear as peer

    n_heads, head_dim, kernel_size = SHAPES[request.param]
    torch.manual_seed(0)
    config = peer.KimiLinearConfig(
        hidden_size=D_MODEL,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_heads=n_heads,
        linear_head_dim=head_dim,
        linear_conv_kernel_dim=kernel_size,
        rms_norm_eps=1e-6,
    )
    theirs = peer.KimiLinearDeltaAttention(config, 0)
    ours = KimiDeltaAttention(D_MODEL, n_heads=n_heads, head_dim=head_dim, kernel_size=kernel_size)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.normal_(std=0.4).add_(1.0 if "norm" in name else GATES[gates] if "decay.bias" in name else 0.0)
        for name, value in as_theirs({name: p.detach() for name, p in ours.named_parameters()}).items():
            theirs.get_parameter(name).copy_(value)
    return ours, theirs, config


def as_theirs(tensors):
    """Our parameters (or gradients) by their names and in their layout."""
    q, k, v = tensors["qkv.weight"].chunk(3)
    return {
        **{theirs: tensors[ours] for ours, theirs in NAMES.items()},
        **{"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v},
        "conv1d.weight": tensors["conv.weight"].t()[:, None],
        "forget_gate.A_log": tensors["decay.log_rate"][None, None],
        "forget_gate.dt_bias": tensors["decay.bias"].flatten(),
    }


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("padded", [False, True])
def test_forward_and_every_gradient(pair, padded):
    ours, theirs, _ = pair
    mask = torch.ones(2, TOKENS)
    mask[0, : 3 * padded] = 0
    # both are float32: what flows through a nearly closed gate is lost in their rounding
    assert_same_forward_and_backward(
        lambda x: ours(x, mask)[0],
        lambda x: theirs(x, attention_mask=mask),
        (2, TOKENS, D_MODEL),
        mask=mask,
        gradient_tolerance=1e-4,
    )
    gradients = as_theirs({name: parameter.grad for name, parameter in ours.named_parameters()})
    assert set(gradients) == {name for name, _ in theirs.named_parameters()}
    for name, gradient in gradients.items():
        assert_close(gradient, theirs.get_parameter(name).grad, f"the gradient of {name}", tolerance=1e-4)


@pytest.mark.parametrize("gates", ["ordinary"])
def test_decoding_after_a_prompt(pair):
    ours, theirs, config = pair
    x = torch.randn(2, TOKENS, D_MODEL)
    parts = [9, *[1] * (TOKENS - 9)]
    assert_same_decoding(ours, lambda chunk, cache, seen: theirs(chunk, cache), x, parts, config)
