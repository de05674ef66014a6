"""`short_conv` computes what transformers' LFM2 short convolution computes, gradients and decoding included."""

import pytest
import torch

from blocks.sequence.short_conv import ShortConv
from parity.compare import assert_close, assert_same_decoding, assert_same_forward_and_backward

BLOCK = "sequence/short_conv"
ORACLE = "transformers' Lfm2ShortConv"

D_MODEL, TOKENS = 16, 9


@pytest.fixture(params=[2, 3, 5])
def pair(request):
    """Our block and theirs with the same random weights, and their configuration."""
    from transformers.models.lfm2 import modeling_lfm2 as peer

    torch.manual_seed(0)
    config = peer.Lfm2Config(
        hidden_size=D_MODEL,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        conv_L_cache=request.param,
        layer_types=["conv"],
    )
    theirs = peer.Lfm2ShortConv(config, 0)
    ours = ShortConv(D_MODEL, kernel_size=request.param)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
        theirs.in_proj.weight.copy_(ours.in_proj.weight)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.conv.weight.copy_(ours.conv.weight.t()[:, None])
    return ours, theirs, config


@pytest.mark.parametrize("padded", [False, True])
def test_forward_and_every_gradient(pair, padded):
    ours, theirs, _ = pair
    mask = torch.ones(2, TOKENS)
    mask[0, : 3 * padded] = 0
    assert_same_forward_and_backward(
        lambda x: ours(x, mask)[0], lambda x: theirs(x, attention_mask=mask), (2, TOKENS, D_MODEL), mask=mask
    )
    assert_close(ours.in_proj.weight.grad, theirs.in_proj.weight.grad, "the input projection's gradient")
    assert_close(ours.out.weight.grad, theirs.out_proj.weight.grad, "the output projection's gradient")
    assert_close(ours.conv.weight.grad.t()[:, None], theirs.conv.weight.grad, "the kernel's gradient")


def test_decoding_after_a_prompt(pair):
    ours, theirs, config = pair
    x = torch.randn(2, TOKENS, D_MODEL)
    parts = [4, *[1] * (TOKENS - 4)]
    assert_same_decoding(ours, lambda chunk, cache, seen: theirs(chunk, cache), x, parts, config)
