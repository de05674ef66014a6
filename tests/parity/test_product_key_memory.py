"""`product_key_memory` computes what a loop over tokens, heads and all n² values computes, gradients included."""

import pytest
import torch
from retrieval_oracle import D_MODEL, assert_rows_are_never_held, assert_same_function, product_key_picks

from blocks.state.product_key_memory import ProductKeyMemory
from doge_lab.ops import picks as picked

BLOCK = "state/product_key_memory"
ORACLE = "the equations of the paper over all n² values, written out in float64"

OPTIONS = [
    {},
    {"n_keys": 5, "top_k": 7, "normalisation": "sigmoid", "query_norm": "none"},
    {"n_keys": 3, "n_heads": 2, "top_k": 9, "query_norm": "layer"},
    {"n_keys": 4, "n_heads": 1, "top_k": 1, "normalisation": "softmax_all", "d_query": 8},
]


def looped(block, tokens):
    c = block.config
    outputs = []
    for token in tokens:
        picks = product_key_picks(block.router, token, norm=c.query_norm, top_k=c.top_k, normalisation=c.normalisation)
        outputs.append(sum(weight * block.values[e] for e, weight in picks))
    return torch.stack(outputs), 0.0


@pytest.mark.parametrize("few_floats", [0, 1 << 30])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_and_gradients_are_those_of_the_published_equations(monkeypatch, options, sharpness, few_floats):
    monkeypatch.setattr(picked, "_FEW_FLOATS", few_floats)
    seed = OPTIONS.index(options)
    torch.manual_seed(seed)
    block = ProductKeyMemory(D_MODEL, **{"n_keys": 6, **options})
    with torch.no_grad():
        block.router.keys.mul_(sharpness)
    assert_same_function(block, looped, seed)


def test_no_gathered_rows_are_held():
    assert_rows_are_never_held(lambda: ProductKeyMemory(64, n_keys=6, n_heads=4, top_k=8), n_picks=32)


def test_a_query_along_one_key_of_each_half_reads_their_value():
    """Keys of unit vectors, and a query that is sharp: value i n + j, not j n + i."""
    n, i, j = 4, 1, 3
    block = ProductKeyMemory(2 * n, n_keys=n, n_heads=1, top_k=2, d_query=2 * n, query_norm="none").double()
    with torch.no_grad():
        block.router.query.weight.copy_(torch.eye(2 * n))
        block.router.keys.copy_(100 * torch.eye(n).expand(2, 1, n, n))
    x = torch.zeros(1, 1, 2 * n, dtype=torch.float64)
    x[..., i] = x[..., n + j] = 1.0
    torch.testing.assert_close(block(x)[0, 0], block.values[i * n + j].detach())
