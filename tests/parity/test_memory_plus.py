"""`memory_plus` computes what a loop over tokens, heads and all n² values computes, gate and projection included."""

import pytest
import torch
from retrieval_oracle import D_MODEL, assert_rows_are_never_held, assert_same_function, product_key_picks

from blocks.state.memory_plus import MemoryPlus
from doge_lab.ops import picks as picked

BLOCK = "state/memory_plus"
ORACLE = "the equations of the paper over all n² values, written out in float64"

OPTIONS = [
    {},
    {"n_keys": 5, "top_k": 7, "normalisation": "sigmoid", "qk_norm": False, "d_value": 5},
    {"n_keys": 3, "n_heads": 2, "top_k": 9, "d_value": 20},
    {"n_keys": 4, "n_heads": 1, "top_k": 1, "normalisation": "softmax_all", "d_query": 8},
]


def looped(block, tokens):
    c = block.config
    outputs = []
    for token in tokens:
        picks = product_key_picks(
            block.router,
            token,
            norm="rms" if c.qk_norm else "none",
            top_k=c.top_k,
            normalisation=c.normalisation,
        )
        read = sum(weight * block.values[e] for e, weight in picks)
        gate = block.gate.weight @ token
        outputs.append(block.project_out.weight @ (read * gate / (1 + (-gate).exp())))
    return torch.stack(outputs), 0.0


@pytest.mark.parametrize("few_floats", [0, 1 << 30])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_and_gradients_are_those_of_the_published_equations(monkeypatch, options, sharpness, few_floats):
    monkeypatch.setattr(picked, "_FEW_FLOATS", few_floats)
    seed = OPTIONS.index(options)
    torch.manual_seed(seed)
    block = MemoryPlus(D_MODEL, **{"n_keys": 6, **options})
    with torch.no_grad():
        gain = block.router.key_gain
        (block.router.keys if gain is None else gain).mul_(sharpness)
        if gain is not None:
            gain.mul_(torch.rand_like(gain) + 0.5)
    assert_same_function(block, looped, seed)


def test_no_gathered_rows_are_held():
    assert_rows_are_never_held(lambda: MemoryPlus(64, n_keys=6, n_heads=4, top_k=8), n_picks=32)
