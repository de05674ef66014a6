"""The causal depthwise convolution that blocks share, and the block without its gates."""

import pytest
import torch
from torch.nn import functional as F

from blocks.sequence.short_conv import ShortConv
from doge_lab.errors import UserError
from doge_lab.layers.short_conv import CausalConv

CHANNELS, TOKENS = 6, 11


def random_conv(kernel_size, bias):
    torch.manual_seed(0)
    conv = CausalConv(CHANNELS, kernel_size, bias=bias)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_()
    return conv


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_it_is_a_depthwise_conv1d_over_the_past(kernel_size, bias):
    conv = random_conv(kernel_size, bias)
    x, direction = torch.randn(2, 2, TOKENS, CHANNELS)
    kernel = conv.weight.t()[:, None]
    expected = F.conv1d(F.pad(x.mT, (kernel_size - 1, 0)), kernel, conv.bias, groups=CHANNELS).mT
    actual, _ = conv(x)
    torch.testing.assert_close(actual, expected)
    parameters = list(conv.parameters())
    torch.testing.assert_close(
        torch.autograd.grad((actual * direction).sum(), parameters),
        torch.autograd.grad((expected * direction).sum(), parameters),
    )


@pytest.mark.parametrize("chunks", [[TOKENS], [1] * TOKENS, [2, 1, 5, 3]])
@pytest.mark.parametrize("kernel_size", [2, 4])
def test_any_split_gives_the_same(kernel_size, chunks):
    conv = random_conv(kernel_size, bias=True)
    x = torch.randn(2, TOKENS, CHANNELS)
    parts, tail = [], None
    for chunk in x.split(chunks, dim=1):
        y, tail = conv(chunk, tail)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), conv(x)[0])
    assert tail.shape[1:] == conv.tail_shape
    assert torch.equal(tail, x[:, TOKENS - kernel_size + 1 :])


def test_the_tail_is_held_in_the_cache_s_type():
    cache = ShortConv(8, kernel_size=4).init_cache(batch=2, capacity=100, dtype=torch.bfloat16)
    assert cache.nbytes() == 2 * 3 * 8 * 2


def test_without_a_gate_it_is_the_convolution_alone():
    block = ShortConv(CHANNELS, kernel_size=3, gate=False)
    x = torch.randn(2, TOKENS, CHANNELS)
    assert block.num_params() == 3 * CHANNELS
    assert block.flops_per_token(10) == 0
    assert torch.equal(block(x)[0], block.conv(x)[0])


def test_a_kernel_of_one_token_is_refused():
    with pytest.raises(UserError, match="kernel_size"):
        ShortConv(8, kernel_size=1)
