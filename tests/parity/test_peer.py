"""`peer` computes what a loop over tokens, heads and all n² experts computes, in float64, gradients included."""

import pytest
import torch
from retrieval_oracle import D_MODEL, assert_rows_are_never_held, assert_same_function, product_key_picks
from torch.nn import functional as F

from blocks.state.peer import PEER
from doge_lab.ops import picks as picked

BLOCK = "state/peer"
ORACLE = "the equations of the paper over all n² experts, written out in float64"

OPTIONS = [
    {},
    {"n_keys": 5, "top_k": 7, "normalisation": "sigmoid", "query_norm": "none", "activation": "relu"},
    {"n_keys": 3, "n_heads": 2, "top_k": 9, "query_norm": "layer", "activation": "silu"},
    {"n_keys": 4, "n_heads": 1, "top_k": 1, "normalisation": "softmax_all", "d_query": 8},
]


def looped(block, tokens):
    c = block.config
    act = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[c.activation]
    outputs = []
    for token in tokens:
        y = torch.zeros_like(token)
        for e, weight in product_key_picks(
            block.router, token, norm=c.query_norm, top_k=c.top_k, normalisation=c.normalisation
        ):
            y = y + weight * act(token @ block.down[e]) * block.up[e]
        outputs.append(y)
    return torch.stack(outputs), 0.0


@pytest.mark.parametrize("few_floats", [0, 1 << 30])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_and_gradients_are_those_of_the_published_equations(monkeypatch, options, sharpness, few_floats):
    monkeypatch.setattr(picked, "_FEW_FLOATS", few_floats)
    seed = OPTIONS.index(options)
    torch.manual_seed(seed)
    block = PEER(D_MODEL, **{"n_keys": 6, **options})
    with torch.no_grad():
        block.router.keys.mul_(sharpness)
    assert_same_function(block, looped, seed)


def test_no_gathered_rows_are_held():
    assert_rows_are_never_held(lambda: PEER(64, n_keys=6, n_heads=4, top_k=8), n_picks=32)


def test_the_weights_are_a_softmax_for_each_head():
    """With the same experts for everyone, the weights of a head add up to what one expert alone would give."""
    torch.manual_seed(0)
    block = PEER(D_MODEL, n_keys=4, n_heads=3, top_k=5).double()
    with torch.no_grad():
        block.down.copy_(block.down[:1].expand_as(block.down))
        block.up.copy_(block.up[:1].expand_as(block.up))
    x = torch.randn(1, 7, D_MODEL, dtype=torch.float64)
    torch.testing.assert_close(block(x), 3 * F.gelu(x @ block.down[0])[..., None] * block.up[0])
