"""Every block in the registry keeps the contract, with its defaults and with options far from them."""

import pytest

from doge_lab import registry
from doge_lab.testing import CHECKS, run_checks

# (kind, name) -> options far from the defaults; `d_model` may be among them
CONFIGURATIONS = {
    ("sequence", "attention"): [
        {"n_heads": 8, "n_kv_heads": 1, "window": 5, "qk_norm": True},
        {"n_heads": 3, "head_dim": 6, "positions": "none"},
        {"n_heads": 2, "n_kv_heads": 2, "window": 70, "rotary_base": 100.0, "d_model": 12},
        {"window": 6, "keep_first": 3, "n_kv_heads": 2, "gate": "head"},
        {"window": 2, "keep_first": 1, "sinks": True, "soft_cap": 2.0, "n_heads": 2, "d_model": 12},
        {"sinks": True, "gate": "channel", "n_heads": 8, "n_kv_heads": 2, "qk_norm": True},
    ],
    ("sequence", "gated_linear_attention"): [
        {"n_heads": 1, "expand_k": 1.0, "expand_v": 2.0, "gate_low_rank": 3},
        {"n_heads": 8, "gate_normaliser": 2.0, "d_model": 48},
        {"n_heads": 2},
    ],
    ("sequence", "inner_func_attn"): [
        {"cache": "hidden", "n_inner_values": 300, "n_inner_value_heads": 2, "n_inner_value_per_head": 3},
        {"n_heads": 1, "positions": "rotary", "mask": "none", "router": "softmax_all", "n_inner_value_per_head": 2},
        {"n_heads": 2, "cache": "hidden", "n_inner_values": 1, "max_position_embeddings": 7, "d_model": 12},
        {"router": "softmax_chosen", "n_inner_value_per_head": 4, "balance_loss_weight": 0.1, "z_loss_weight": 0.01},
        {"fidelity": "published", "n_heads": 2, "n_inner_values": 2},
    ],
    ("sequence", "mamba"): [
        {"d_state": 1, "dt_rank": 5, "kernel_size": 2},
        {"expand": 1.5, "kernel_size": 7, "d_model": 20},
        {"d_state": 40, "expand": 0.5},
    ],
    ("sequence", "mamba2"): [
        {"n_heads": 8, "n_groups": 4, "d_state": 3, "expand": 1.0},
        {"n_heads": 1, "d_state": 40, "kernel_size": 2, "d_model": 20},
        {"n_groups": 2, "expand": 0.5},
    ],
    ("sequence", "rg_lru"): [
        {"n_heads": 8, "expand": 1.5, "kernel_size": 2, "first_token": "whole"},
        {"n_heads": 1, "expand": 0.5, "d_model": 12},
        {"n_heads": 2, "first_token": "whole"},
    ],
    ("sequence", "mlstm"): [
        {"n_heads": 1, "expand_k": 1.0, "expand_v": 2.0, "gate_cap": 4.0},
        {"n_heads": 8, "input_gate_bias": -10.0, "d_model": 48},
        {"n_heads": 2},
        {"fidelity": "published", "n_heads": 2, "input_gate_bias": -10.0},
    ],
    ("sequence", "gated_recurrent"): [
        {"cell": "lstm", "expand": 0.5},
        {"cell": "lstm", "candidate": "linear", "expand": 3.0, "d_model": 20},
        {"candidate": "linear", "expand": 0.1},
    ],
    ("sequence", "titans_memory"): [
        {"n_heads": 1, "expand_k": 0.5},
        {"n_heads": 2, "expand_v": 2.0, "kernel_size": 2, "d_model": 20},
        {"n_heads": 8, "kernel_size": 9},
    ],
    ("sequence", "ttt_linear"): [
        {"n_heads": 1, "mini_batch": 2, "gate": True},
        {"n_heads": 2, "mini_batch": 5, "base_lr": 4.0, "positions": "none", "d_model": 18},
        {"n_heads": 8, "mini_batch": 33},
    ],
    ("sequence", "based"): [
        {"n_heads": 1, "feature_dim": 16},
        {"n_heads": 8, "feature_dim": 1},
        {"n_heads": 2, "feature_dim": 5, "d_model": 12},
    ],
    ("sequence", "block_sparse_attention"): [
        {"n_heads": 8, "n_kv_heads": 1, "block_size": 2, "n_selected": 1, "window": 1},
        {"n_heads": 3, "head_dim": 6, "block_size": 5, "n_selected": 9, "window": 30, "positions": "none"},
        {"n_heads": 2, "n_kv_heads": 2, "block_size": 16, "n_selected": 2, "rotary_base": 100.0, "d_model": 12},
    ],
    ("sequence", "delta_net"): [
        {"n_heads": 1, "head_dim": 5, "value_dim": 9, "kernel_size": None, "allow_negative": True},
        {"n_heads": 2, "kernel_size": 2, "d_model": 12},
    ],
    ("sequence", "differential_attention"): [
        {"n_heads": 4, "n_kv_heads": 1, "lambda_init": 0.9},
        {"n_heads": 3, "head_dim": 6, "rotary_base": 50.0, "d_model": 20},
    ],
    ("sequence", "dynamic_mask_attention"): [
        {"n_heads": 8, "n_kv_heads": 1, "keep_window_size": 5, "qk_norm": False},
        {"n_heads": 3, "head_dim": 6, "keep_window_size": 2, "positions": "none"},
        {"n_heads": 2, "n_kv_heads": 2, "keep_window_size": 70, "rotary_base": 100.0, "d_model": 12},
    ],
    ("sequence", "forgetting_attention"): [
        {"n_heads": 8, "n_kv_heads": 2, "positions": "rotary", "qk_norm": True},
        {"n_heads": 3, "head_dim": 5, "n_kv_heads": 1, "forget_bias": 1.5, "d_model": 20},
    ],
    ("sequence", "gated_delta_net"): [
        {"n_heads": 2, "n_value_heads": 6, "head_dim": 5, "value_dim": 3, "kernel_size": 2},
        {"n_heads": 1, "n_value_heads": 4, "d_model": 20},
    ],
    ("sequence", "gated_slot_attention"): [
        {"n_heads": 1, "n_slots": 64, "gate_normaliser": 1.0},
        {"n_heads": 8, "n_slots": 3, "d_model": 24},
        {"n_heads": 2, "n_slots": 5},
    ],
    ("sequence", "hgrn2"): [
        {"expand_ratio": 1, "lower_bound": 0.5},
        {"expand_ratio": 24, "lower_bound": 0.95, "d_model": 48},
        {"expand_ratio": 4},
    ],
    ("sequence", "hyena"): [
        {"window": 5, "time_scale": 8.0, "filter_dim": 3, "filter_depth": 1, "short_kernel": 2},
        {"window": 70, "filter_bands": 1, "filter_depth": 4, "time_scale": 300.0, "d_model": 12},
        {"short_kernel": 6, "filter_frequency": 1.0, "filter_dim": 40},
    ],
    ("sequence", "kimi_delta_attention"): [
        {"n_heads": 1, "gate_low_rank": 3, "kernel_size": 7, "d_model": 20},
        {"n_heads": 3, "head_dim": 5, "kernel_size": 2},
    ],
    ("sequence", "latent_attention"): [
        {"q_lora_rank": 5, "kv_lora_rank": 3, "n_heads": 2, "v_head_dim": 20},
        {"qk_nope_head_dim": 2, "kv_lora_rank": 40, "n_heads": 3, "v_head_dim": 5, "qk_rope_head_dim": 4},
        {"n_heads": 1, "rotary_base": 100.0, "d_model": 20},
    ],
    ("sequence", "lightning_attention"): [
        {"n_heads": 3, "head_dim": 5, "d_model": 20},
        {"n_heads": 8, "head_dim": 1},
        {"n_heads": 1},
    ],
    ("sequence", "linear_attention"): [
        {"n_heads": 1, "feature_map": "relu"},
        {"n_heads": 2, "feature_map": "identity", "normalise": "output"},
        {"n_heads": 3, "feature_map": "hedgehog", "d_model": 24},
        {"n_heads": 8, "feature_map": "hedgehog", "normalise": "output"},
    ],
    ("sequence", "retention"): [
        {"n_heads": 8, "expand_v": 1.0, "decay_exponent": 1.0},
        {"n_heads": 1, "positions": "none", "d_model": 20},
        {"n_heads": 2, "expand_v": 0.25},
    ],
    ("sequence", "rwkv7"): [
        {"n_heads": 1, "decay_rank": 2, "rate_rank": 3, "gate_rank": 5},
        {"n_heads": 2, "d_model": 12},
    ],
    ("sequence", "short_conv"): [{"kernel_size": 2, "gate": False}, {"kernel_size": 9, "d_model": 20}],
    ("state", "cdmoe"): [
        {"form": "serial", "cross_domain": "glu", "n_experts": 16, "n_experts_heads": 2, "d_cross_domain": 40},
        {"n_experts": 144, "n_experts_per_head": 8, "weigh": "before_activation", "normalisation": "softmax_all"},
        {
            "normalisation": "sigmoid",
            "n_experts_per_head": 1,
            "d_private_expert": 6,
            "d_model": 24,
        },
        {"fidelity": "published", "act_fn": "relu"},
    ],
    ("state", "channel_mix"): [{"receptance": True}, {"d_hidden": 7, "d_model": 20}],
    ("state", "fast_feedforward"): [
        {"routing": "soft", "depth": 2, "d_leaf": 5, "hardening_loss_weight": 0.1},
        {"routing": "soft_then_hard", "depth": 5, "activation": "relu2", "balance_loss_weight": 0.0},
        {"depth": 1, "d_leaf": 7, "activation": "silu", "d_model": 20},
    ],
    ("state", "kan"): [
        {"basis": "rbf", "n_basis": 2, "d_hidden": 7},
        {"order": 1, "n_basis": 12, "grid_range": 1.0, "base": "relu", "d_model": 20},
    ],
    ("state", "low_rank"): [
        {"rank": 1, "d_hidden": 7, "activation": "relu2"},
        {"rank": 20, "activation": "silu", "d_model": 20},
    ],
    ("state", "memory_plus"): [
        {"n_keys": 7, "n_heads": 1, "top_k": 3, "qk_norm": False, "d_value": 5},
        {
            "n_keys": 24,
            "n_heads": 2,
            "top_k": 16,
            "normalisation": "sigmoid",
            "d_value": 48,
            "d_query": 6,
            "d_model": 20,
        },
        {"n_keys": 12, "top_k": 4, "normalisation": "softmax_all", "balance_loss_weight": 0.1},
    ],
    ("state", "monarch"): [
        {"n_blocks": 1, "d_hidden": 5, "activation": "relu2"},
        {"n_blocks": 8, "d_hidden": 24, "d_model": 48},
    ],
    ("state", "peer"): [
        {"n_keys": 5, "n_heads": 1, "top_k": 3, "normalisation": "sigmoid", "activation": "relu", "query_norm": "none"},
        {"n_keys": 12, "n_heads": 2, "top_k": 1, "normalisation": "softmax_all", "query_norm": "layer", "d_model": 20},
        {"n_keys": 24, "n_heads": 8, "top_k": 16, "d_query": 6, "balance_loss_weight": 0.1, "d_model": 48},
    ],
    ("state", "product_key_memory"): [
        {"n_keys": 7, "n_heads": 1, "top_k": 5, "query_norm": "none", "d_query": 2},
        {"n_keys": 24, "n_heads": 2, "top_k": 32, "query_norm": "layer", "normalisation": "softmax_all"},
        {"n_keys": 12, "top_k": 1, "normalisation": "sigmoid", "balance_loss_weight": 0.1, "d_model": 20},
    ],
    ("state", "sigmoid_moe"): [
        {
            "n_experts": 3,
            "top_k": 1,
            "normalisation": "sigmoid",
            "expert": "mlp",
            "activation": "relu",
            "n_shared_experts": 0,
        },
        {"n_experts": 64, "top_k": 8, "d_expert": 2, "bias_update_rate": 0.01, "scale": 1.0},
        {"n_experts": 2, "top_k": 2, "bias_update_rate": 0.0, "d_model": 20},
    ],
    ("state", "ultra_mem"): [
        {"n_keys": 9, "n_candidates": 4, "n_heads": 1, "top_k": 3, "rank": 3, "qk_norm": "rms"},
        {"n_keys": 20, "n_candidates": 6, "rank": 4, "value_expansion": 3, "core_loss_weight": 0.1, "d_model": 48},
        {"rank": 1, "top_k": 1, "normalisation": "sigmoid", "n_heads": 4, "d_query": 8, "d_model": 20},
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

VARY_THEMSELVES = {
    *("any_option", "search_space_works", "width_works", "declarations_are_pure"),
    *("anywhere", "any_length"),  # which any_option asks of options drawn at random
}
"""Checks that go through options, places and lengths of their own accord: once for each block."""


def problems(results):
    return {result.name: result.message for result in results if not result.passed}


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_block_keeps_the_contract(kind, name, options):
    given = dict(options)
    d_model = given.pop("d_model", 32)
    only = None if not options else [check.name for check in CHECKS.values() if check.mode == "quick"]
    only = only and [name for name in only if name not in VARY_THEMSELVES]
    assert problems(run_checks(registry.get(kind, name), given, d_model=d_model, only=only)) == {}


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
