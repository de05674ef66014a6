"""`mlp` computes what transformers' NemotronMLP and PhiMLP without biases compute, gradients included."""

import pytest
import torch

from blocks.state.mlp import MLP

BLOCK = "state/mlp"
ORACLE = "transformers' NemotronMLP and PhiMLP"


def nemotron(d_model, d_hidden, act):
    from transformers.models.nemotron import modeling_nemotron as peer

    config = peer.NemotronConfig(
        hidden_size=d_model, intermediate_size=d_hidden, hidden_act=act, mlp_bias=False, num_attention_heads=1
    )
    theirs = peer.NemotronMLP(config)
    return theirs, theirs.up_proj, theirs.down_proj


def phi(d_model, d_hidden, act):
    from transformers.models.phi import modeling_phi as peer

    config = peer.PhiConfig(hidden_size=d_model, intermediate_size=d_hidden, hidden_act=act, num_attention_heads=1)
    theirs = peer.PhiMLP(config)
    with torch.no_grad():
        theirs.fc1.bias.zero_()
        theirs.fc2.bias.zero_()
    return theirs, theirs.fc1, theirs.fc2


@pytest.mark.parametrize("peer", [nemotron, phi])
@pytest.mark.parametrize(
    ("act", "their_act"),
    [("gelu", "gelu"), ("gelu_tanh", "gelu_new"), ("silu", "silu"), ("relu", "relu"), ("relu2", "relu2")],
)
@pytest.mark.parametrize(("d_model", "d_hidden", "seed"), [(16, 20, 0), (9, 4, 1)])
def test_outputs_and_gradients_are_theirs(peer, act, their_act, d_model, d_hidden, seed):
    torch.manual_seed(seed)
    mlp = MLP(d_model, d_hidden=d_hidden, activation=act)
    theirs, up, down = peer(d_model, d_hidden, their_act)
    with torch.no_grad():
        for ours, other in ((mlp.up, up), (mlp.down, down)):
            other.weight.copy_(ours.weight.normal_(std=0.5))
    x = torch.randn(2, 7, d_model)
    mine, their = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = mlp(mine), theirs(their)
    close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    for ours, other in ((mine, their), (mlp.up.weight, up.weight), (mlp.down.weight, down.weight)):
        close(ours.grad, other.grad)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
