"""Mini-batches count real tokens, however they are padded and split into calls."""

import pytest
import torch

from doge_lab.ops.mini_batches import MiniBatches


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize(("seen", "new"), [(0, 1), (0, 14), (1, 6), (9, 5), (14, 1)])
@pytest.mark.parametrize("share", [None, 1.0, 0.6, 0.0], ids=["no mask", "none padded", "some padded", "all padded"])
def test_every_real_token_stands_where_its_number_says(size, seen, new, share):
    torch.manual_seed(size + seen)
    mask = None if share is None else torch.rand(4, seen + new) < share
    real = torch.ones(4, seen + new, dtype=torch.bool) if mask is None else mask
    x = torch.randn(4, new, 5, 1)
    batches = MiniBatches(size, mask, new=new, seen=seen)
    arranged = batches.arrange(x)
    assert arranged.shape == (4, batches.count, size, 5, 1)
    begins = batches.begins.expand(4, -1)
    for row in range(4):
        before = int(real[row, :seen].sum())
        expected, expected_begins = torch.zeros_like(arranged[row]), torch.zeros(batches.count, dtype=torch.bool)
        number = before
        for t in range(new):
            if real[row, seen + t]:
                n, place = number // size - before // size, number % size
                expected[n, place] = x[row, t]
                expected_begins[n] |= place == 0
                number += 1
        assert torch.equal(arranged[row], expected)
        assert torch.equal(begins[row], expected_begins)
        kept = real[row, seen:]
        assert torch.equal(batches.restore(arranged)[row, kept], x[row, kept])
