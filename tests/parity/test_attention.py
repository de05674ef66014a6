"""`attention` computes what transformers' attention computes: outputs, gradients, decoding.

LLaMA, Qwen3 (QK-norm), Mistral (window), GPT-OSS (sinks), Gemma 2 (a cap on scores), Qwen3-Next (a gate per channel).
"""

import pytest
import torch

from blocks.sequence.attention import Attention
from parity.compare import assert_close, assert_same_forward_and_backward

BLOCK = "sequence/attention"
ORACLE = "transformers' LLaMA, Qwen3, Mistral, GPT-OSS, Gemma 2 and Qwen3-Next attention"

D_MODEL, TOKENS, HEADS, HEAD_DIM, WINDOW, FIRST = 32, 11, 4, 16, 4, 2
NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}


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


def gpt_oss(kv_heads):
    from transformers.models.gpt_oss import modeling_gpt_oss as peer

    config = peer.GptOssConfig(
        **sizes(kv_heads), attention_bias=False, sliding_window=WINDOW, layer_types=["sliding_attention"]
    )
    options = {"sinks": True, "window": WINDOW}
    return peer.GptOssAttention(config, 0), peer.GptOssRotaryEmbedding(config), config, options


def gemma2(kv_heads):
    from transformers.models.gemma2 import modeling_gemma2 as peer

    config = peer.Gemma2Config(
        **sizes(kv_heads),
        query_pre_attn_scalar=HEAD_DIM,
        attn_logit_softcapping=1.5,  # below many of the scores
        layer_types=["full_attention"],
    )
    return peer.Gemma2Attention(config, 0), peer.Gemma2RotaryEmbedding(config), config, {"soft_cap": 1.5}


def qwen3_next(kv_heads):
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    given = sizes(kv_heads)
    given["rope_parameters"]["partial_rotary_factor"] = 1.0
    config = peer.Qwen3NextConfig(**given, layer_types=["full_attention"])
    options = {"qk_norm": True, "gate": "channel"}
    return peer.Qwen3NextAttention(config, 0), peer.Qwen3NextRotaryEmbedding(config), config, options


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


@pytest.fixture(params=[llama, qwen3, mistral, gpt_oss, gemma2, qwen3_next], ids=lambda peer: peer.__name__)
def pair(request, kv_heads):
    """Our block and theirs with the same random weights, and a function that runs theirs."""
    return build_pair(request.param, kv_heads)


def build_pair(peer, kv_heads, **more):
    torch.manual_seed(0)
    theirs, rotary, config, options = peer(kv_heads)
    ours = Attention(D_MODEL, n_heads=HEADS, n_kv_heads=kv_heads, head_dim=HEAD_DIM, **options, **more)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.fill_(torch.nan)
        for name, parameter in ours.named_parameters():
            parameter.normal_(std=0.4).add_(1.0 if "norm" in name else 0.0)
            # Qwen3-Next's norms multiply by 1 + weight
            stored = parameter - 1 if "norm" in name and peer is qwen3_next else parameter
            part = counterpart(ours, theirs, name)
            part.copy_(stored.view_as(part))
    assert all(parameter.isfinite().all() for parameter in theirs.parameters())

    def run(x, positions, mask, cache=None):
        return theirs(x, rotary(x, positions[None]), mask, past_key_values=cache)[0]

    return ours, theirs, run, config


def counterpart(ours, theirs, name, of=lambda parameter: parameter):
    """Of their module's parameter, the weight or the gradient (`of`), the part that is `name` in ours."""
    module, _, kind = name.partition(".")
    if ours.config.gate == "channel" and module in ("q", "gate"):  # side by side in each head
        return of(theirs.q_proj.weight).view(HEADS, 2, HEAD_DIM, D_MODEL)[:, ("q", "gate").index(module)]
    return of(theirs.get_parameter(f"{NAMES.get(module, module)}.{kind}" if kind else name))


def causal_mask(window):
    age = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None]
    return torch.where((age >= 0) & (age < (window or TOKENS)), 0.0, -1e9)[None, None]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_forward_and_every_gradient(pair):
    assert_same(*pair[:3], causal_mask(pair[0].config.window))


def assert_same(ours, theirs, run, mask):
    shape = (2, TOKENS, D_MODEL)
    assert_same_forward_and_backward(lambda x: ours(x)[0], lambda x: run(x, torch.arange(TOKENS), mask), shape)
    for name, parameter in ours.named_parameters():
        expected = counterpart(ours, theirs, name, lambda parameter: parameter.grad)
        assert_close(parameter.grad.view_as(expected), expected, f"the gradient of {name}")


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
            assert_close(y, run(x[:, t : t + 1], torch.tensor([t]), None, their_cache), f"token {t}")
    kept = their_cache.layers[0].keys.shape[-2]
    assert kept == (
        min(TOKENS, WINDOW - 1) if ours.config.window else TOKENS
    )  # theirs drops the oldest one call earlier


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_first_tokens_are_llama_with_their_mask(kv_heads):
    """No module of transformers keeps first tokens, but LLaMA's takes any mask."""
    ours, theirs, run, _ = build_pair(llama, kv_heads, window=WINDOW, keep_first=FIRST)
    mask = causal_mask(WINDOW)
    for query in range(TOKENS):
        mask[..., query, : min(FIRST, query + 1)] = 0.0
    assert_same(ours, theirs, run, mask)

    x, cache = torch.randn(2, TOKENS, D_MODEL), ours.init_cache(batch=2, capacity=TOKENS)
    pads = (0, 3)
    real = torch.arange(TOKENS) >= torch.tensor(pads)[:, None]
    outputs = []
    with torch.no_grad():
        for chunk in x.split([2, 3, 1, 4, 1], dim=1):
            outputs.append(ours(chunk, real[:, : cache.position + chunk.shape[1]], cache)[0])
            cache.advance(chunk.shape[1])
        for row, pad in enumerate(pads):
            left = TOKENS - pad
            expected = run(x[row : row + 1, pad:], torch.arange(left), mask[..., :left, :left])
            assert_close(
                torch.cat(outputs, dim=1)[row : row + 1, pad:], expected, f"decoding after {pad} padding tokens"
            )


def test_a_gate_per_head_is_one_per_channel_with_equal_channels():
    torch.manual_seed(0)
    by_head, by_channel = (Attention(D_MODEL, n_heads=HEADS, gate=gate) for gate in ("head", "channel"))
    weights = by_head.state_dict()
    weights["gate.weight"] = weights["gate.weight"].repeat_interleave(D_MODEL // HEADS, dim=0)
    by_channel.load_state_dict(weights)
    x = torch.randn(2, TOKENS, D_MODEL)
    assert_close(by_head(x)[0], by_channel(x)[0], "the output")
