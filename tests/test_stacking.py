"""Replicas of a block, stacked, have the gradients that each has alone."""

import pytest
import torch
from test_contract import BLOCKS
from torch.func import functional_call, grad, stack_module_state, vmap

from doge_lab import registry

REPLICAS = 3


def loss(parameters, buffers, x, block):
    y = functional_call(block, (parameters, buffers), (x,))
    y = y[0] if isinstance(y, tuple) else y
    return (y * torch.linspace(-1, 1, y.shape[-1])).sum()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("kind", "name"), [block for block in BLOCKS if block[1] != "none"])
def test_replicas_stack(kind, name):
    replicas = []
    for seed in range(REPLICAS):
        torch.manual_seed(seed)
        replicas.append(registry.get(kind, name)(32))
    parameters, buffers = stack_module_state(replicas)
    x = torch.randn(REPLICAS, 2, 40, 32)

    stacked = vmap(lambda *given: grad(loss)(*given, replicas[0]))(parameters, buffers, x)
    for number, block in enumerate(replicas):
        own = {name: parameter.detach() for name, parameter in block.named_parameters()}
        alone = grad(loss)(own, dict(block.named_buffers()), x[number], block)
        largest = max(float(gradient.abs().max()) for gradient in alone.values())
        for parameter, expected in alone.items():
            off = float((stacked[parameter][number].detach() - expected).abs().max())
            assert off < 1e-4 * max(float(expected.abs().max()), 1e-2 * largest), (number, parameter)
