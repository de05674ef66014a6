"""`gated_delta_net` computes what transformers' Qwen3-Next gated DeltaNet computes: outputs, gradients, decoding."""

import pytest
import torch

from blocks.sequence.gated_delta_net import GatedDeltaNet
from parity.compare import assert_close, assert_same_decoding, assert_same_forward_and_backward

BLOCK = "sequence/gated_delta_net"
ORACLE = "transformers' Qwen3NextGatedDeltaNet"
D_MODEL, TOKENS = 24, 21
SHAPES = {  # n_heads, n_value_heads, head_dim, value_dim, kernel_size
    "published": (2, 4, 6, 6, 4),
    "one head": (1, 1, 5, 9, 2),
    "as many heads": (3, 3, 4, 8, 3),
}
GATES = {"weak": -6.0, "ordinary": 0.0, "strong": 3.0}  # added to the decay's bias


@pytest.fixture(params=SHAPES)
def pair(request, gates):
    """Our block and theirs with the same random weights, and their configuration."""
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    n_heads, n_value_heads, head_dim, value_dim, kernel_size = SHAPES[request.param]
    torch.manual_seed(0)
    config = peer.Qwen3NextConfig(
        hidden_size=D_MODEL,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=n_heads,
        linear_num_value_heads=n_value_heads,
        linear_key_head_dim=head_dim,
        linear_value_head_dim=value_dim,
        linear_conv_kernel_dim=kernel_size,
    )
    theirs = peer.Qwen3NextGatedDeltaNet(config, 0)
    ours = GatedDeltaNet(
        D_MODEL,
        n_heads=n_heads,
        n_value_heads=n_value_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        kernel_size=kernel_size,
    )
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.normal_(std=0.4).add_(1.0 if "norm" in name else GATES[gates] if "decay.bias" in name else 0.0)
        for name, value in as_theirs(ours, {name: p.detach() for name, p in ours.named_parameters()}).items():
            theirs.get_parameter(name).copy_(value)
    return ours, theirs, config


def as_theirs(ours, tensors):
    """Our parameters (or gradients) by their names and in their layout, grouped by query and key head."""
    rows = [tensors["qkv.weight"].split(ours.widths)[i] for i in range(3)]
    groups = [part.unflatten(0, (ours.n_heads, -1)) for part in (*rows, tensors["gate.weight"])]
    scalars = [tensors[f"{name}.weight"].unflatten(0, (ours.n_heads, -1)) for name in ("strength", "step")]
    return {
        "in_proj_qkvz.weight": torch.cat(groups, dim=1).flatten(0, 1),
        "in_proj_ba.weight": torch.cat(scalars, dim=1).flatten(0, 1),
        "conv1d.weight": tensors["conv.weight"].t()[:, None],
        "A_log": tensors["decay.log_rate"].flatten(),
        "dt_bias": tensors["decay.bias"].flatten(),
        "norm.weight": tensors["norm.weight"],
        "out_proj.weight": tensors["out.weight"],
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
    gradients = as_theirs(ours, {name: parameter.grad for name, parameter in ours.named_parameters()})
    assert set(gradients) == {name for name, _ in theirs.named_parameters()}
    for name, gradient in gradients.items():
        assert_close(gradient, theirs.get_parameter(name).grad, f"the gradient of {name}", tolerance=1e-4)


@pytest.mark.parametrize("gates", ["ordinary"])
def test_decoding_after_a_prompt(pair):
    ours, theirs, config = pair
    x = torch.randn(2, TOKENS, D_MODEL)
    parts = [9, *[1] * (TOKENS - 9)]
    assert_same_decoding(ours, lambda chunk, cache, seen: theirs(chunk, cache), x, parts, config)
