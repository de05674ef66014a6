"""`channel_mix` computes what transformers' RwkvFeedForward computes once its token shift is held off.

Its time mix of 1 takes all of the token and none of the one before it. Without a receptance its gate is held open.
"""

import pytest
import torch
from torch import nn

from blocks.state.channel_mix import ChannelMix
from doge_lab.testing import check_block

BLOCK = "state/channel_mix"
ORACLE = "transformers' RwkvFeedForward without its token shift"


class Open(nn.Module):
    """A receptance whose sigmoid is 1."""

    def forward(self, x):
        return x.new_full(x.shape, 1e3)


def pair(d_model, d_hidden, receptance, seed):
    from transformers.models.rwkv import modeling_rwkv as peer

    torch.manual_seed(seed)
    ours = ChannelMix(d_model, d_hidden=d_hidden, receptance=receptance)
    theirs = peer.RwkvFeedForward(peer.RwkvConfig(hidden_size=d_model, intermediate_size=ours.key.out_features))
    projections = [(ours.key, theirs.key), (ours.value, theirs.value)]
    if receptance:
        projections.append((ours.receptance, theirs.receptance))
    else:
        theirs.receptance = Open()
    with torch.no_grad():
        theirs.time_mix_key.fill_(1.0)
        theirs.time_mix_receptance.fill_(1.0)
        for mine, their in projections:
            their.weight.copy_(mine.weight.normal_(std=0.5))
    return ours, theirs, projections


@pytest.mark.parametrize("receptance", [False, True])
@pytest.mark.parametrize(("d_model", "d_hidden", "seed"), [(16, None, 0), (16, 5, 1), (7, 24, 2)])
def test_outputs_and_gradients_are_theirs(d_model, d_hidden, seed, receptance):
    ours, theirs, projections = pair(d_model, d_hidden, receptance, seed)
    x = torch.randn(3, 9, d_model)
    mine, their = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, (z, _) = ours(mine), theirs(their)
    torch.testing.assert_close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    for my_grad, their_grad in [(mine, their), *((a.weight, b.weight) for a, b in projections)]:
        torch.testing.assert_close(my_grad.grad, their_grad.grad, rtol=1e-4, atol=1e-5 * y.abs().max().item())


def test_the_width_is_the_published_one_when_left_out():
    assert ChannelMix(32).key.out_features == 128
    assert ChannelMix(32, receptance=True).key.out_features == 112


def test_it_keeps_the_contract_with_and_without_a_gate():
    check_block(ChannelMix, receptance=True)
    check_block(ChannelMix, d_hidden=5)
