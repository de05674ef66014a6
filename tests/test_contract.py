"""Every block in the registry keeps the contract, with its defaults and with options far from them."""

import pytest

from doge_lab import registry
from doge_lab.testing import run_checks

# (kind, name) -> options far from the defaults; `d_model` may be among them
CONFIGURATIONS = {
    ("sequence", "attention"): [
        {"n_heads": 8, "n_kv_heads": 1, "window": 5, "qk_norm": True},
        {"n_heads": 3, "head_dim": 6, "positions": "none"},
        {"n_heads": 2, "n_kv_heads": 2, "window": 70, "rotary_base": 100.0, "d_model": 12},
    ],
    ("sequence", "gated_linear_attention"): [
        {"n_heads": 1, "expand_k": 1.0, "expand_v": 2.0, "gate_low_rank": 3},
        {"n_heads": 8, "gate_normaliser": 2.0, "d_model": 48},
        {"impl": "reference", "n_heads": 2},
    ],
    ("sequence", "inner_func_attn"): [
        {"cache": "hidden", "n_inner_values": 300, "n_inner_value_heads": 2, "n_inner_value_per_head": 3},
        {"n_heads": 1, "positions": "rotary", "mask": "none", "router": "softmax_all", "n_inner_value_per_head": 2},
        {"n_heads": 2, "cache": "hidden", "n_inner_values": 1, "max_position_embeddings": 7, "d_model": 12},
        {"router": "softmax_chosen", "n_inner_value_per_head": 4, "balance_loss_weight": 0.1, "z_loss_weight": 0.01},
        {"fidelity": "published", "n_heads": 2, "n_inner_values": 2},
    ],
    ("sequence", "short_conv"): [{"kernel_size": 2, "gate": False}, {"kernel_size": 9, "d_model": 20}],
    ("state", "cdmoe"): [
        {"form": "serial", "cross_domain": "glu", "n_experts": 16, "n_experts_heads": 2, "d_cross_domain": 40},
        {"n_experts": 144, "n_experts_per_head": 8, "weigh": "before_activation", "normalisation": "softmax_all"},
        {
            "impl": "reference",
            "normalisation": "sigmoid",
            "n_experts_per_head": 1,
            "d_private_expert": 6,
            "d_model": 24,
        },
        {"fidelity": "published", "act_fn": "relu"},
    ],
    ("state", "glu"): [{"d_hidden": 7, "activation": "relu"}, {"activation": "gelu_tanh", "d_model": 10}],
    ("state", "mlp"): [{"d_hidden": 7, "activation": "relu2"}, {"activation": "silu", "d_model": 10}],
    ("state", "moe"): [
        {"n_experts": 3, "top_k": 1, "normalisation": "sigmoid", "expert": "mlp", "activation": "relu"},
        {"n_experts": 16, "top_k": 4, "d_expert": 5, "n_shared_experts": 2, "normalisation": "softmax_all"},
        {"n_experts": 2, "top_k": 2, "z_loss_weight": 0.1, "balance_loss_weight": 0.0, "d_model": 20},
    ],
}
BLOCKS = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
CASES = [(*block, options) for block in BLOCKS for options in [{}, *CONFIGURATIONS.get(block, [])]]


def problems(results):
    return {result.name: result.message for result in results if not result.passed}


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_block_keeps_the_contract(kind, name, options):
    given = dict(options)
    d_model = given.pop("d_model", 32)
    assert problems(run_checks(registry.get(kind, name), given, d_model=d_model)) == {}


@pytest.mark.parametrize(("kind", "name"), BLOCKS)
def test_block_is_captured_by_the_compiler(kind, name):
    assert problems(run_checks(registry.get(kind, name), only=["compiles"])) == {}


@pytest.mark.parametrize(("kind", "name"), BLOCKS)
def test_block_is_checked_far_from_its_defaults(kind, name):
    if registry.get(kind, name).Config.model_fields:
        found = len(CONFIGURATIONS.get((kind, name), []))
        assert found >= 2, f"add two configurations of {name!r} far from its defaults to CONFIGURATIONS, it has {found}"


def test_the_table_names_blocks_that_exist():
    assert set(CONFIGURATIONS) <= set(BLOCKS)
