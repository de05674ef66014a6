"""The sizes of gated linear attention; its arithmetic is in `tests/parity`."""

import pytest
import torch

from blocks.sequence.gated_linear_attention import GatedLinearAttention
from doge_lab.errors import UserError


def test_the_state_is_float32_whatever_the_cache():
    block = GatedLinearAttention(32, n_heads=2, expand_k=0.5, expand_v=2.0)
    cache = block.init_cache(batch=3, capacity=100, dtype=torch.bfloat16)
    assert cache["state"].shape == (3, 2, 8, 32)
    assert cache.nbytes() == 3 * 2 * 8 * 32 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "expand_k * d_model=16 must be divisible by n_heads=3"),
        ({"expand_v": 0.625, "n_heads": 8}, "expand_v * d_model=20 must be divisible by n_heads=8"),
        ({"expand_k": 0.01}, "expand_k=0.01 of d_model=32 leaves no channel"),
    ],
)
def test_errors_say_the_rule(options, message):
    with pytest.raises(UserError) as error:
        GatedLinearAttention(32, **options)
    assert message in str(error.value)
