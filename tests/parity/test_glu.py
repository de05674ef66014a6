"""`glu` computes what transformers' LLaMA perceptron computes, gradients included."""

import pytest
import torch

from blocks.state.glu import GLU

BLOCK = "state/glu"
ORACLE = "transformers' LlamaMLP"

D_MODEL, D_HIDDEN = 16, 20


@pytest.mark.parametrize("act", ["silu", "gelu", "relu"])
def test_glu_is_the_llama_perceptron(act):
    from transformers.models.llama import modeling_llama as peer

    torch.manual_seed(0)
    config = peer.LlamaConfig(
        hidden_size=D_MODEL, intermediate_size=D_HIDDEN, hidden_act=act, mlp_bias=False, num_attention_heads=2
    )
    mlp, glu = peer.LlamaMLP(config), GLU(D_MODEL, d_hidden=D_HIDDEN, activation=act)
    pairs = [(glu.gate, mlp.gate_proj), (glu.up, mlp.up_proj), (glu.down, mlp.down_proj)]
    with torch.no_grad():
        for ours, others in pairs:
            others.weight.copy_(ours.weight)
    x = torch.randn(2, 7, D_MODEL)
    y, z = glu(x), mlp(x)
    torch.testing.assert_close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    for ours, others in pairs:
        torch.testing.assert_close(ours.weight.grad, others.weight.grad)
