"""`latent_attention` computes what transformers' DeepSeek-V3 attention computes: outputs, gradients, decoding.

Written out and absorbed: each form of the block is held to the oracle, whichever is the cheaper one.
"""

import pytest
import torch

from blocks.sequence.latent_attention import LatentAttention
from parity.compare import assert_close, assert_same_decoding, assert_same_forward_and_backward

BLOCK = "sequence/latent_attention"
ORACLE = "transformers' DeepseekV3Attention"

D_MODEL, TOKENS = 32, 11
NAMES = {"q_up": "q_proj", "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj"}
LOW_RANK_QUERY = {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q_up": "q_b_proj"}
OPTIONS = [
    {"n_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    {"n_heads": 2, "kv_lora_rank": 3, "qk_rope_head_dim": 2, "qk_nope_head_dim": 6, "v_head_dim": 20},
    {"n_heads": 3, "kv_lora_rank": 5, "q_lora_rank": 7, "qk_rope_head_dim": 6, "qk_nope_head_dim": 4, "v_head_dim": 3},
]


@pytest.fixture(params=OPTIONS, ids=["default", "wide values", "low-rank query"])
def pair(request):
    """Our block and theirs with the same random weights, a function that runs theirs, and their configuration."""
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as peer

    torch.manual_seed(0)
    options = dict(request.param)
    heads = options["n_heads"]
    config = peer.DeepseekV3Config(
        hidden_size=D_MODEL,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        rope_interleave=False,  # a rotation of halves, as ours
        attn_implementation="eager",
        **{"q_lora_rank": None, **{name: value for name, value in options.items() if name != "n_heads"}},
    )
    theirs, rotary = peer.DeepseekV3Attention(config, 0), peer.DeepseekV3RotaryEmbedding(config)
    ours = LatentAttention(D_MODEL, rotary_base=100.0, **options)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.normal_(std=0.4).add_(1.0 if "norm" in name else 0.0)
            counterpart(ours, theirs, name).copy_(parameter)
    assert len(list(theirs.parameters())) == len(list(ours.parameters()))

    def run(x, positions, mask, cache=None):
        return theirs(x, rotary(x, positions[None]), mask, past_key_values=cache)[0]

    return ours, theirs, run, config


@pytest.fixture(params=["cheaper", "expanded", "absorbed"])
def form(request, monkeypatch):
    if request.param != "cheaper":
        monkeypatch.setattr(LatentAttention, "_absorbs", lambda self, new, keys: request.param == "absorbed")


def counterpart(ours, theirs, name):
    module, kind = name.split(".")
    names = {**NAMES, **(LOW_RANK_QUERY if ours.config.q_lora_rank else {}), "out": "o_proj"}
    return theirs.get_parameter(f"{names[module]}.{kind}")


def causal_mask():
    return torch.full((TOKENS, TOKENS), -1e9).triu(1)[None, None]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("seed", [0, 1])
def test_forward_and_every_gradient(pair, seed):
    ours, theirs, run, _ = pair
    torch.manual_seed(seed)
    assert_same_forward_and_backward(
        lambda x: ours(x)[0], lambda x: run(x, torch.arange(TOKENS), causal_mask()), (2, TOKENS, D_MODEL)
    )
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, counterpart(ours, theirs, name).grad, f"the gradient of {name}")


@pytest.mark.usefixtures("form")
def test_decoding_after_a_prompt(pair):
    ours, _, run, config = pair
    x = torch.randn(2, TOKENS, D_MODEL)

    def step(chunk, their_cache, seen):
        end = seen + chunk.shape[1]
        return run(chunk, torch.arange(seen, end), causal_mask()[..., seen:end, :end], their_cache)

    cache, their_cache = assert_same_decoding(ours, step, x, [4, 3, *[1] * (TOKENS - 7)], config)
    layer = their_cache.layers[0]
    theirs = layer.keys.shape[1:].numel() + layer.values.shape[1:].numel()
    assert sum(tensor[0].numel() for tensor in cache.tensors.values()) == theirs  # they keep the latent as well


@pytest.mark.usefixtures("form")
def test_left_padding_in_either_form(pair):
    ours, _, run, _ = pair
    x = torch.randn(1, TOKENS, D_MODEL)
    with torch.no_grad():
        y, _ = ours(x, torch.arange(TOKENS)[None] >= 3)
        left = TOKENS - 3
        assert_close(
            y[:, 3:], run(x[:, 3:], torch.arange(left), causal_mask()[..., :left, :left]), "the output after padding"
        )


def test_one_new_token_is_absorbed_and_a_prompt_is_not():
    block = LatentAttention(64)
    assert block._absorbs(1, 100)
    assert not block._absorbs(100, 100)
