"""`differential_attention` computes what transformers' DiffLlama attention computes: outputs, gradients, decoding."""

import pytest
import torch

from blocks.sequence.differential_attention import DifferentialAttention
from parity.compare import assert_close, assert_same_decoding, assert_same_forward_and_backward

BLOCK = "sequence/differential_attention"
ORACLE = "transformers' DiffLlamaAttention"

D_MODEL, TOKENS = 24, 11


@pytest.fixture(params=[(1, 1, 12, 0), (4, 2, 6, 1), (6, 1, 4, 7), (2, 2, 6, 3)], ids=str)
def pair(request):
    """Our block and theirs with the same random weights, a function that runs theirs, and their configuration."""
    from transformers.models.diffllama import modeling_diffllama as peer

    torch.manual_seed(0)
    heads, kv_heads, head_dim, depth = request.param
    config = peer.DiffLlamaConfig(
        hidden_size=D_MODEL,
        num_attention_heads=2 * heads,
        num_key_value_heads=2 * kv_heads,
        head_dim=head_dim,
        num_hidden_layers=8,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        attn_implementation="eager",
    )
    theirs, rotary = peer.DiffLlamaAttention(config, depth), peer.DiffLlamaRotaryEmbedding(config)
    ours = DifferentialAttention(
        D_MODEL, layer_idx=depth, n_layers=8, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, rotary_base=100.0
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.4)
        for name, parameter in ours.named_parameters():
            parameter.copy_(counterpart(ours, theirs, name))

    def run(x, positions, mask, cache=None):
        return theirs(x, rotary(x, positions[None]), mask, past_key_values=cache)[0]

    return ours, theirs, run, config


def counterpart(ours, theirs, name, of=lambda parameter: parameter):
    """The weight of their module, or the gradient (`of`), laid out as `name` is in ours."""
    if name.startswith("lambda"):
        return torch.stack([of(theirs.get_parameter(f"{name}{half}")) for half in (1, 2)])
    weight = of(theirs.get_parameter(f"{name[0]}_proj.weight"))
    if name == "v.weight":  # theirs: the first halves of all heads, then the second halves
        weight = weight.view(2, ours.n_kv_heads, ours.head_dim, D_MODEL).transpose(0, 1).reshape(-1, D_MODEL)
    return weight


def causal_mask():
    return torch.full((TOKENS, TOKENS), -1e9).triu(1)[None, None]


@pytest.mark.parametrize("seed", [0, 1])
def test_forward_and_every_gradient(pair, seed):
    ours, theirs, run, _ = pair
    torch.manual_seed(seed)
    assert_same_forward_and_backward(
        lambda x: ours(x)[0], lambda x: run(x, torch.arange(TOKENS), causal_mask()), (2, TOKENS, D_MODEL)
    )
    for name, parameter in ours.named_parameters():
        expected = counterpart(ours, theirs, name, lambda parameter: parameter.grad)
        assert_close(parameter.grad, expected, f"the gradient of {name}")


def test_decoding_after_a_prompt(pair):
    ours, theirs, run, config = pair
    theirs.layer_idx = 0  # where their cache keeps this layer; its λ is set already
    x = torch.randn(2, TOKENS, D_MODEL)

    def step(chunk, their_cache, seen):
        end = seen + chunk.shape[1]
        return run(chunk, torch.arange(seen, end), causal_mask()[..., seen:end, :end], their_cache)

    assert_same_decoding(ours, step, x, [4, 3, *[1] * (TOKENS - 7)], config)


def test_lambda_grows_with_depth_unless_given():
    by_depth = [DifferentialAttention(D_MODEL, layer_idx=depth, n_layers=3).lambda_init for depth in range(3)]
    assert by_depth == pytest.approx([0.2, 0.3555091, 0.4707130])  # equation 3 of the paper, whose layers start at 1
    assert DifferentialAttention(D_MODEL, layer_idx=2, n_layers=3, lambda_init=0.8).lambda_init == 0.8
