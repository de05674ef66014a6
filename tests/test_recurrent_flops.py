"""What a recurrent state takes up costs FLOPs that PyTorch's counter does not see: they follow from the cache."""

import math

import pytest
from test_contract import CONFIGURATIONS

from doge_lab import registry
from doge_lab.cache import Fixed

OUTER_PRODUCTS = {"rwkv7": 2, "titans_memory": 1 / 2, "ttt_linear": 1 / 2}
"""Of the last two half of the cache takes up a product: the momentum, and the sum of the gradients."""
PACKED = {"based": lambda block: block.n_heads}
"""Numbers of the state that the cache leaves out: Based knows the count of tokens, one number per head."""


def states(block):
    """The entries that products are summed into: matrices in the state's own type."""
    entries = block.cache_spec().values()
    return [entry.shape for entry in entries if isinstance(entry, Fixed) and len(entry.shape) > 1 and entry.dtype]


RECURRENT = [
    pytest.param(name, options, id=f"{name}-{index}")
    for (kind, name), several in CONFIGURATIONS.items()
    if kind == "sequence"
    for index, options in enumerate([{}, *several])
    if states(registry.get(kind, name)(**{"d_model": 32, **options}))
]


@pytest.mark.parametrize(("name", "options"), RECURRENT)
def test_each_number_of_a_state_takes_a_multiply_add_per_outer_product(name, options):
    block = registry.get("sequence", name)(**{"d_model": 32, **options})
    numbers = sum(math.prod(shape) for shape in states(block)) + PACKED.get(name, lambda block: 0)(block)
    by_hand = 2 * OUTER_PRODUCTS.get(name, 1) * numbers
    assert block.uncounted_flops_per_token(64) == by_hand


def test_every_recurrence_with_a_matrix_for_a_state_is_here():
    found = {param.values[0] for param in RECURRENT}
    assert found >= {"mamba", "mamba2", "mlstm", "delta_net", "based", *OUTER_PRODUCTS}
