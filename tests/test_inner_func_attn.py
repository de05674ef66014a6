"""What `inner_func_attn` promises beyond the contract: one function in two caches, its bytes, faults and errors."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blocks.sequence.inner_func_attn import InnerFuncAttn
from doge_lab.cache import nbytes
from doge_lab.errors import UserError


def build(d_model=24, *, seed=0, **options):
    """A block whose every parameter is random, the mask too."""
    torch.manual_seed(seed)
    block = InnerFuncAttn(d_model, **options).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0)
    return block


def in_calls(block, x, chunks, mask=None):
    cache, outputs = block.init_cache(batch=len(x), capacity=x.shape[1]), []
    with torch.no_grad():
        for chunk in x.split(chunks, dim=1):
            seen = cache.position + chunk.shape[1]
            outputs.append(block(chunk, None if mask is None else mask[:, :seen], cache)[0])
            cache.advance(chunk.shape[1])
    return torch.cat(outputs, dim=1)


def close(actual, expected, tolerance=1e-5):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_usage_of_the_readme_runs():
    attn = InnerFuncAttn(d_model=64, n_heads=1, n_inner_values=1, max_position_embeddings=16, layer_idx=0)
    y, past_key_values = attn(torch.rand(2, 16, 64), torch.ones(2, 16))
    assert y.shape == (2, 16, 64)
    assert past_key_values is None


@given(
    n_heads=st.sampled_from([1, 2, 4, 8]),
    picks=st.sampled_from([(1, 1, 1), (2, 1, 1), (5, 1, 1), (5, 3, 2), (4, 2, 4), (300, 2, 3)]),
    router=st.sampled_from(["sigmoid", "softmax_chosen", "softmax_all"]),
    mask=st.sampled_from(["none", "learned"]),
    covered=st.sampled_from([1, 5, 40]),
    tokens=st.integers(1, 40),
    left_padding=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_both_caches_hold_one_function(n_heads, picks, router, mask, covered, tokens, left_padding, seed):
    n, heads, k = picks
    if (router == "softmax_chosen" and k == 1) or (router == "softmax_all" and n == 1):
        return
    options = {"n_inner_values": n, "n_inner_value_heads": heads, "n_inner_value_per_head": k, "router": router}
    options |= {"n_heads": n_heads, "mask": mask, "max_position_embeddings": covered}
    kv, hidden = (build(seed=seed, cache=cache, **options) for cache in ("kv", "hidden"))
    x = torch.randn(2, tokens, 24, generator=torch.Generator().manual_seed(seed))
    rng, chunks = random.Random(seed), []
    while (left := tokens - sum(chunks)) > 0:
        chunks.append(rng.randint(1, left))
    pad = min(left_padding, tokens - 1)
    real = None if not pad else torch.arange(tokens)[None] >= torch.tensor([pad, 0])[:, None]
    with torch.no_grad():
        expected, _ = kv(x, real)
    keep = torch.ones(2, tokens, dtype=torch.bool) if real is None else real
    for block in (kv, hidden):
        for calls in (chunks, [tokens], [1] * tokens):
            close(in_calls(block, x, calls, real)[keep], expected[keep])


@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 6]])
@pytest.mark.parametrize("fidelity", ["working", "published"])
def test_rotary_positions_and_the_published_form_decode_too(fidelity, chunks):
    block, x = build(positions="rotary", fidelity=fidelity), torch.randn(2, 12, 24)
    real = torch.arange(12)[None] >= torch.tensor([3, 0])[:, None]
    with torch.no_grad():
        close(in_calls(block, x, chunks), block(x)[0])
        close(in_calls(block, x, chunks, real)[real], block(x, real)[0][real])


@pytest.mark.parametrize(
    ("d_model", "options", "kv", "hidden"),
    [
        (256, {"n_inner_values": 64, "n_inner_value_per_head": 2}, 1024, 512 + 2 * (1 + 2)),
        (256, {"n_inner_values": 256, "n_inner_value_heads": 4}, 1024, 512 + 4 * (1 + 2)),
        (256, {"n_inner_values": 257, "n_inner_value_heads": 4}, 1024, 512 + 4 * (2 + 2)),
        (32, {"n_inner_values": 1}, 128, 64 + 2),  # nothing to choose: no index
        (32, {"n_inner_values": 64, "n_inner_value_heads": 8, "n_inner_value_per_head": 4}, 128, 64 + 32 * (1 + 2)),
    ],
)
def test_bytes_per_token(d_model, options, kv, hidden):
    for cache, expected in (("kv", kv), ("hidden", hidden)):
        block = InnerFuncAttn(d_model, cache=cache, **options)
        assert nbytes(block.cache_spec(), 10, torch.bfloat16) == 10 * expected
        held = block.init_cache(batch=3, capacity=10, dtype=torch.bfloat16)
        assert held.nbytes() == 3 * 10 * expected


@pytest.mark.parametrize(
    ("n", "dtype"),
    [(2, torch.uint8), (256, torch.uint8), (257, torch.int16), (32768, torch.int16), (32769, torch.int32)],
)
def test_indices_take_the_smallest_integer_type(n, dtype):
    assert InnerFuncAttn(8, n_inner_values=n, cache="hidden").cache_spec()["index"].dtype == dtype


@pytest.mark.parametrize("cache", ["kv", "hidden"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_heads": 1, "n_inner_values": 1},
        {"mask": "none", "d_inner_values_retrieval": 7},
        {"n_inner_values": 50, "n_inner_value_heads": 3, "n_inner_value_per_head": 2, "router": "softmax_all"},
    ],
    ids=str,
)
def test_flops_are_what_pytorch_counts(cache, options):
    block = build(cache=cache, **options)
    for context in (1, 2, 33):
        memory = block.init_cache(batch=1, capacity=context)
        memory.advance(context - 1)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            block(torch.randn(1, 1, 24), None, memory)
        assert block.flops_per_token(context) == counter.get_total_flops()


def test_active_parameters_leave_out_the_inner_values_not_chosen():
    block = build(n_inner_values=50, n_inner_value_heads=3, n_inner_value_per_head=2)
    assert block.num_params() - block.active_params() == (50 - 6) * 24
    all_chosen = build(n_inner_values=4, n_inner_value_heads=3, n_inner_value_per_head=2)
    assert all_chosen.active_params() == all_chosen.num_params()


def test_the_mask_follows_the_position_among_real_tokens():
    block = build(max_position_embeddings=8)
    x = torch.randn(1, 6, 24)
    expected, _ = block(x)
    for pad in (1, 5):
        padded, real = torch.cat([torch.randn(1, pad, 24), x], dim=1), torch.arange(6 + pad)[None] >= pad
        close(block(padded, real)[0][:, pad:], expected)


def test_keys_beyond_the_mask_are_not_masked():
    block = build(max_position_embeddings=4)
    with torch.no_grad():
        block.mask.fill_(-1e4)
    x = torch.randn(1, 9, 24)
    moved = x.clone()
    moved[:, :4] += 1.0
    assert torch.equal(block(moved)[0][:, 5:], block(x)[0][:, 5:])
    assert not torch.equal(block(moved)[0][:, 3], block(x)[0][:, 3])
    moved = x.clone()
    moved[:, 4] += 1.0
    assert not torch.allclose(block(moved)[0][:, 5:], block(x)[0][:, 5:])


def test_router_stats():
    block = InnerFuncAttn(24, n_inner_values=6, n_inner_value_heads=2, n_inner_value_per_head=3)
    block(torch.randn(2, 50, 24))
    stats = block.router_stats
    assert stats.usage.shape == (6,)
    assert float(stats.usage.sum()) == pytest.approx(1.0)
    assert 1.0 <= float(stats.balance_loss) < 6.0
    assert float(stats.loss) == 0.0
    assert not stats.loss.requires_grad
    with torch.no_grad():
        block.retrieval_keys.zero_()
    block(torch.randn(2, 50, 24))
    assert float(block.router_stats.balance_loss) == pytest.approx(1.0)  # even scores are balanced
    assert float(block.router_stats.z_loss) == pytest.approx(torch.tensor(6.0).log().square().item())


def test_router_losses_teach_the_router():
    block = InnerFuncAttn(24, balance_loss_weight=0.5, z_loss_weight=0.25)
    block(torch.randn(2, 50, 24))
    stats = block.router_stats
    torch.testing.assert_close(stats.loss, 0.5 * stats.balance_loss + 0.25 * stats.z_loss)
    stats.loss.backward()
    assert block.retrieval_keys.grad.any()
    assert block.retrieve.weight.grad.any()


def gradients(block):
    torch.manual_seed(1)
    block(torch.randn(4, 12, 24))[0].square().mean().backward()
    return {name: parameter.grad for name, parameter in block.named_parameters()}


def test_published_faults():
    block = InnerFuncAttn(24, fidelity="published", max_position_embeddings=8)
    grads = gradients(block)
    for name in ("retrieve.weight", "retrieval_keys", "mask"):
        assert grads[name] is None or not grads[name].any(), f"{name} learns"
    assert float(block.router_stats.usage.max()) == 1.0  # every token retrieves the same inner value
    assert block.cache_spec().keys() == {"k", "v"}
    assert block.known_faults().keys() == {"parameters_learn", "active_params", "router_usage"}


def test_the_working_form_has_none_of_them():
    block = InnerFuncAttn(24, max_position_embeddings=8)
    assert all(grad.isfinite().all() and grad.any() for grad in gradients(block).values())
    assert float(block.router_stats.usage.max()) < 1.0
    assert block.known_faults() == {}


def test_the_published_mask_is_rounded_and_never_hides_a_token_from_itself():
    block = build(fidelity="published", n_heads=1, max_position_embeddings=8)
    x = torch.randn(1, 8, 24)
    outputs = []
    for numbers in (1.0, 0.6, 0.4, 0.0):
        with torch.no_grad():
            block.mask.fill_(1.0)
            block.mask[:, 2] = numbers
            outputs.append(block(x)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    differs = [bool((outputs[0] != outputs[3])[0, t].any()) for t in range(8)]
    assert differs == [False] * 3 + [True] * 5
    with torch.no_grad():
        block.mask.zero_()
    y, changed = block(x)[0], x.clone()
    changed[:, 3] += 1.0
    moved = (block(changed)[0] != y).any(-1)[0]
    assert moved.tolist() == [t == 3 for t in range(8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 5}, "d_model=24 must be divisible by n_heads=5"),
        ({"n_inner_values": 3, "n_inner_value_per_head": 4}, "n_inner_value_per_head=4 picks more than the n_inner_v"),
        ({"n_heads": 8, "positions": "rotary"}, "rotary positions need an even head_dim, not 3"),
        ({"cache": "hidden", "positions": "rotary"}, "use positions: none, or cache: kv"),
        ({"cache": "hidden", "fidelity": "published"}, "use cache: kv, or fidelity: working"),
        ({"router": "softmax_chosen"}, "router: softmax_chosen over a single inner value is always 1"),
        ({"router": "softmax_all", "n_inner_values": 1}, "router: softmax_all over a single inner value is always 1"),
        ({"n_inner_value": 3}, "did you mean 'n_inner_value"),
    ],
)
def test_errors_say_the_rule_and_the_way_out(options, message):
    with pytest.raises(UserError) as error:
        InnerFuncAttn(24, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
