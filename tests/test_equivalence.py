"""Two forms of one block are one function; `check_same_function` notices when they are not."""

from typing import Literal

import pytest
import torch
from broken.healthy import Decay
from test_contract import CASES

from blocks.sequence.inner_func_attn import InnerFuncAttn
from doge_lab import registry
from doge_lab.block import BlockConfig
from doge_lab.cache import nbytes
from doge_lab.ops.dispatch import Op
from doge_lab.testing import check_same_forms, check_same_function

KV_AND_HIDDEN = [
    {},
    {"n_heads": 1, "n_inner_values": 2, "mask": "none"},
    {"n_heads": 8, "n_inner_values": 40, "n_inner_value_per_head": 5, "router": "softmax_chosen"},
    {"n_heads": 2, "n_inner_values": 300, "n_inner_value_heads": 3, "n_inner_value_per_head": 2},
    {"n_inner_values": 1, "max_position_embeddings": 9},
    {"router": "softmax_all", "n_inner_value_per_head": 3, "max_position_embeddings": 30},
]


@pytest.mark.parametrize("options", KV_AND_HIDDEN)
def test_both_caches_of_inner_func_attn_are_one_function(options):
    check_same_function(
        InnerFuncAttn,
        {**options, "cache": "kv"},
        {**options, "cache": "hidden"},
        lengths=(1, 2, 31, 140),  # beyond 128 tokens the fused path computes it
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("options", KV_AND_HIDDEN)
def test_bytes_of_both_caches_are_as_stated_and_as_held(options, dtype):
    for cache in ("kv", "hidden"):
        block = InnerFuncAttn(32, **options, cache=cache)
        c = block.config
        picks = c.n_inner_value_heads * c.n_inner_value_per_head
        index = 0 if c.n_inner_values == 1 else 1 if c.n_inner_values <= 256 else 2
        stated = {"kv": 2 * 32 * dtype.itemsize, "hidden": 32 * dtype.itemsize + picks * (index + dtype.itemsize)}
        held = block.init_cache(batch=1, capacity=12, dtype=dtype)
        block(torch.randn(1, 12, 32), None, held)
        assert nbytes(block.cache_spec(), 12, dtype) == held.nbytes() == 12 * stated[cache]


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_the_ops_of_a_block_have_forms_of_one_function(kind, name, options, monkeypatch):
    called, choose = set(), Op.form
    monkeypatch.setattr(Op, "form", lambda op, *a, **k: called.add(op.name) or choose(op, *a, **k))
    given = dict(options)
    d_model = given.pop("d_model", 32)
    registry.get(kind, name)(d_model, **given)(torch.randn(1, 2, d_model))
    if not called:
        pytest.skip("calls no op")
    if name == "cdmoe" and options.get("fidelity") == "published":
        pytest.skip("keys that start at zero make scores tie, and forms may choose differently among equals")
    check_same_forms(registry.get(kind, name), d_model=d_model, **given)


class TwoForms(Decay):
    """A recurrence with a second form that errs in the one place that `error` names."""

    class Config(BlockConfig):
        error: Literal["none", "everywhere", "cached", "padded", "padded_and_cached"] = "none"

    def forward(self, x, attention_mask=None, cache=None):
        y, cache_after = super().forward(x, attention_mask, cache)
        padded = attention_mask is not None and bool((attention_mask == 0).any())
        wrong = {
            "none": False,
            "everywhere": True,
            "cached": cache is not None,
            "padded": padded,
            "padded_and_cached": padded and cache is not None,
        }
        return (y * 1.0001 if wrong[self.config.error] else y), cache_after


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("everywhere", "1 tokens in one call differ"),
        ("cached", "1 tokens in 1 calls with a cache differ"),
        ("padded", "2 left-padded tokens differ"),
        ("padded_and_cached", "2 left-padded tokens in 1 calls differ"),
    ],
)
def test_a_difference_is_named(error, message):
    check_same_function(TwoForms, {}, {"error": "none"})
    with pytest.raises(AssertionError, match=message):
        check_same_function(TwoForms, {}, {"error": error})
