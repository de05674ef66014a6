"""`dynamic_mask_attention` against transformers' Doge attention, and against its equations written out in float64."""

import math

import pytest
import torch

from blocks.sequence.dynamic_mask_attention import DynamicMaskAttention
from parity.compare import assert_close

BLOCK = "sequence/dynamic_mask_attention"
ORACLE = "transformers' DogeAttention, and the equations of the paper, written out in float64"

D_MODEL, TOKENS, HEADS, HEAD_DIM = 24, 13, 4, 8
NAMES = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "dt": "dt_proj",
    "out": "o_proj",
    "a": "A",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
}


def random_block(seed, **options):
    torch.manual_seed(seed)
    block = DynamicMaskAttention(D_MODEL, **options)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            # masks are exponentials: those of hundreds would measure how a fused kernel rounds
            parameter.normal_(std=0.1 if name == "a" else 0.4).add_(1.0 if "norm" in name else 0.0)
    return block


def doge(ours, kv_heads, keep_window_size):
    """Doge's attention with our weights, as a function of tokens, first position and cache."""
    from transformers.models.doge import modeling_doge as peer

    config = peer.DogeConfig(
        hidden_size=D_MODEL,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        num_hidden_layers=1,
        keep_window_size=keep_window_size,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attn_implementation="eager",
    )
    theirs, rotary = peer.DogeAttention(config, 0), peer.DogeRotaryEmbedding(config)
    theirs.load_state_dict({renamed(name): tensor for name, tensor in ours.state_dict().items()})

    def run(x, first=0, cache=None):
        positions = torch.arange(first, first + x.shape[1])
        hidden = torch.arange(first + x.shape[1]) > positions[:, None]
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]
        return theirs(x, rotary(x, positions[None]), mask, past_key_values=cache)[0]

    return theirs, run, config


def renamed(name):
    module, *parameter = name.split(".")
    return ".".join([NAMES[module], *parameter])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("keep_window_size", [4, TOKENS, 100])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_transformers_forward_and_every_gradient(kv_heads, keep_window_size, seed):
    ours = random_block(seed, n_heads=HEADS, n_kv_heads=kv_heads, head_dim=HEAD_DIM, keep_window_size=keep_window_size)
    theirs, run, _ = doge(ours, kv_heads, keep_window_size)
    x, direction = torch.randn(2, 2, TOKENS, D_MODEL)
    x_theirs = x.clone().requires_grad_()
    x.requires_grad_()
    y, expected = ours(x)[0], run(x_theirs)
    assert_close(y, expected, "the output")
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    assert_close(x.grad, x_theirs.grad, "the input's gradient")
    largest = max(parameter.grad.abs().max() for parameter in theirs.parameters())
    for name, parameter in ours.named_parameters():
        # a is few numbers, each a sum over all tokens in which much cancels
        assert_close(
            parameter.grad,
            theirs.get_parameter(renamed(name)).grad,
            f"the gradient of {name}",
            least=0.1 * largest * (name == "a"),
        )


@pytest.mark.parametrize("keep_window_size", [5, 100])
def test_transformers_decoding(keep_window_size):
    from transformers import DynamicCache

    ours = random_block(0, n_heads=HEADS, n_kv_heads=2, head_dim=HEAD_DIM, keep_window_size=keep_window_size)
    _, run, config = doge(ours, 2, keep_window_size)
    x = torch.randn(2, TOKENS, D_MODEL)
    cache, their_cache = ours.init_cache(batch=2, capacity=TOKENS), DynamicCache(config=config)
    with torch.no_grad():
        for part in x.split([6, 1, 1, 3, 1, 1], dim=1):
            expected = run(part, their_cache.get_seq_length(), their_cache)
            assert_close(ours(part, None, cache)[0], expected, f"the output after {cache.position} tokens")
            cache.advance(part.shape[1])
    assert cache["k"].shape[1] == min(TOKENS, keep_window_size)


def by_the_equations(block, w, x):
    """One unpadded row [T, D]; `w` are the parameters in the type of `x`."""
    c = block.config
    kv_heads, width = block.n_kv_heads, block.head_dim
    q, k, v = (x @ w[f"{name}.weight"].T for name in ("q", "k", "v"))
    q, k, v = q.unflatten(1, (-1, width)), k.unflatten(1, (-1, width)), v.unflatten(1, (-1, width))
    rating = w["a"] * torch.log1p(torch.exp(v.flatten(1) @ w["dt.weight"].T))
    rows = []
    for t in range(len(x)):
        heads = []
        for head in range(c.n_heads):
            group = head * kv_heads // c.n_heads
            seen = sorted(range(t + 1), key=lambda s: (rating[s, group].item(), s))[-c.keep_window_size :]
            query = turned(c, normed(w, "q_norm", q[t, head]), t)
            scores = [
                query @ turned(c, normed(w, "k_norm", k[s, group]), s) / width**0.5 + rating[s, group].exp()
                for s in seen
            ]
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * v[s, group] for weight, s in zip(weights, seen, strict=True)))
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ w["out.weight"].T


def normed(w, name, channels):
    weight = w.get(f"{name}.weight")
    return channels if weight is None else channels / (channels.square().mean() + 1e-6).sqrt() * weight


def turned(c, channels, position):
    if c.positions == "none":
        return channels
    half = len(channels) // 2
    angles = [position * c.rotary_base ** (-i / half) for i in range(half)]
    cos, sin = (torch.tensor([f(angle) for angle in angles], dtype=channels.dtype) for f in (math.cos, math.sin))
    first, second = channels[:half], channels[half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos])


@pytest.mark.parametrize("equal_keys", [False, True], ids=["rated", "equal"])
@pytest.mark.parametrize(
    "options",
    [
        {"n_heads": 2, "keep_window_size": 3},
        {"n_heads": 4, "n_kv_heads": 2, "keep_window_size": 2, "positions": "none", "qk_norm": False},
        {"n_heads": 3, "n_kv_heads": 1, "keep_window_size": 6, "rotary_base": 10.0},
        {"n_heads": 2, "n_kv_heads": 1},
    ],
    ids=str,
)
def test_the_equations_with_padding_and_calls(options, equal_keys):
    block, pads, tokens = random_block(1, **options), (3, 0), 9
    if equal_keys:
        torch.nn.init.zeros_(block.a)
    x = torch.randn(2, tokens, D_MODEL, requires_grad=True)
    real = torch.arange(tokens)[None] >= torch.tensor(pads)[:, None]
    direction = torch.randn_like(x) * real[..., None]
    y, _ = block(x, real)
    (y * direction).sum().backward()
    cache, calls = block.init_cache(batch=2, capacity=tokens), []
    with torch.no_grad():
        for part in x.split([4, 1, 1, 3], dim=1):
            calls.append(block(part, real[:, : cache.position + part.shape[1]], cache)[0])
            cache.advance(part.shape[1])

    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    x_exact, loss = x.detach().double().requires_grad_(), 0.0
    for row, pad in enumerate(pads):
        exact = by_the_equations(block, w, x_exact[row, pad:])
        assert_close(y[row, pad:], exact, f"row {row}")
        assert_close(torch.cat(calls, dim=1)[row, pad:], exact, f"row {row} in four calls")
        loss = loss + (exact * direction[row, pad:]).sum()
    loss.backward()
    assert_close(x.grad, x_exact.grad, "the input's gradient")
    largest = max(tensor.grad.abs().max() for tensor in w.values())
    for name, parameter in block.named_parameters():
        assert_close(parameter.grad, w[name].grad, f"the gradient of {name}", least=0.05 * largest)


def test_a_half_precision_cache_keeps_the_same_keys():
    torch.manual_seed(0)
    block = DynamicMaskAttention(32, n_heads=4, keep_window_size=8)
    with torch.no_grad():
        block.a.fill_(-1.0)
        x = torch.randn(2, 120, 32)
        whole, _ = block(x)
        cache = block.init_cache(batch=2, capacity=120, dtype=torch.bfloat16)
        steps = []
        for token in x.split(1, dim=1):
            steps.append(block(token, None, cache)[0])
            cache.advance(1)
    assert (torch.cat(steps, dim=1) - whole).abs().max() / whole.abs().max() < 0.02


def test_masks_beyond_the_range_of_an_exponential_are_finite():
    torch.manual_seed(0)
    block = DynamicMaskAttention(32, n_heads=4)
    with torch.no_grad():
        block.a.fill_(2.0)
    x = (100 * torch.randn(2, 17, 32)).requires_grad_()
    y, _ = block(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *block.parameters()))
