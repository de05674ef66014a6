"""`attention` computes what transformers' LLaMA, Qwen3 and Mistral attention compute: outputs, gradients, decoding."""

import pytest
import torch

from blocks.sequence.attention import Attention

D_MODEL, TOKENS, HEADS, HEAD_DIM, WINDOW = 32, 11, 4, 16, 4
NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm"}


def llama(kv_heads):
    from transformers.models.llama import modeling_llama as peer

    config = peer.LlamaConfig(**sizes(kv_heads))
    return peer.LlamaAttention(config, 0), peer.LlamaRotaryEmbedding(config), config, {}


def qwen3(kv_heads):
    from transformers.models.qwen3 import modeling_qwen3 as peer

    config = peer.Qwen3Config(**sizes(kv_heads))
    return peer.Qwen3Attention(config, 0), peer.Qwen3RotaryEmbedding(config), config, {"qk_norm": True}


def mistral(kv_heads):
    from transformers.models.mistral import modeling_mistral as peer

    config = peer.MistralConfig(**sizes(kv_heads), sliding_window=WINDOW)
    return peer.MistralAttention(config, 0), peer.MistralRotaryEmbedding(config), config, {"window": WINDOW}


def sizes(kv_heads):
    return {
        "hidden_size": D_MODEL,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "attn_implementation": "eager",
    }


@pytest.fixture(params=[llama, qwen3, mistral], ids=lambda peer: peer.__name__)
def pair(request, kv_heads):
    """Our block and theirs with the same random weights, and a function that runs theirs."""
    torch.manual_seed(0)
    theirs, rotary, config, options = request.param(kv_heads)
    ours = Attention(D_MODEL, n_heads=HEADS, n_kv_heads=kv_heads, head_dim=HEAD_DIM, **options)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.normal_(std=0.4).add_(1.0 if "norm" in name else 0.0)
            theirs.get_parameter(renamed(name)).copy_(parameter)
    assert len(list(theirs.parameters())) == len(list(ours.parameters()))

    def run(x, positions, mask, cache=None):
        return theirs(x, rotary(x, positions[None]), mask, past_key_values=cache)[0]

    return ours, theirs, run, config


def renamed(name):
    module, parameter = name.split(".")
    return f"{NAMES[module]}.{parameter}"


def causal_mask(window):
    age = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None]
    return torch.where((age >= 0) & (age < (window or TOKENS)), 0.0, -1e9)[None, None]


def close(actual, expected, what):
    difference = (actual - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5, f"{what} is off by {difference:.1e} of the largest"


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_forward_and_every_gradient(pair):
    ours, theirs, run, _ = pair
    x = torch.randn(2, TOKENS, D_MODEL, requires_grad=True)
    x_theirs = x.detach().clone().requires_grad_()
    direction = torch.randn(2, TOKENS, D_MODEL)
    y, _ = ours(x)
    expected = run(x_theirs, torch.arange(TOKENS), causal_mask(ours.config.window))
    close(y, expected, "the output")
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    close(x.grad, x_theirs.grad, "the input's gradient")
    for name, parameter in ours.named_parameters():
        close(parameter.grad, theirs.get_parameter(renamed(name)).grad, f"the gradient of {name}")


@pytest.mark.parametrize("kv_heads", [2])
def test_decoding_token_by_token(pair):
    from transformers import DynamicCache

    ours, _, run, config = pair
    x = torch.randn(2, TOKENS, D_MODEL)
    cache, their_cache = ours.init_cache(batch=2, capacity=TOKENS), DynamicCache(config=config)
    with torch.no_grad():
        for t in range(TOKENS):
            y, _ = ours(x[:, t : t + 1], None, cache)
            cache.advance(1)
            close(y, run(x[:, t : t + 1], torch.tensor([t]), None, their_cache), f"token {t}")
    kept = their_cache.layers[0].keys.shape[-2]
    assert kept == (
        min(TOKENS, WINDOW - 1) if ours.config.window else TOKENS
    )  # theirs drops the oldest one call earlier
