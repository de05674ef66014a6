"""The chunked form of the scalar recurrence is the recurrence, forward and every gradient."""

import pytest
import torch

from doge_lab.ops import scalar_recurrence
from doge_lab.ops.scalar_recurrence import chunked, reference


@pytest.mark.parametrize("tokens", [1, 5, 16, 33])
@pytest.mark.parametrize("heads_of_keys", [1, 3])
@pytest.mark.parametrize("strength", [0.01, 1.0, 60.0])
def test_chunks_are_the_recurrence(tokens, heads_of_keys, strength, monkeypatch):
    make = torch.Generator().manual_seed(tokens)
    q, k = (torch.randn(2, tokens, heads_of_keys, 4, generator=make) for _ in range(2))
    v = torch.randn(2, tokens, 3, 5, generator=make)
    log_decay = -strength * torch.rand(2, tokens, 3, generator=make)
    state = torch.randn(2, 3, 4, 5, generator=make)
    leaves = [tensor.requires_grad_() for tensor in (q, k, v, log_decay, state)]
    weight = torch.randn(2, tokens, 3, 5, generator=make)
    results = []
    monkeypatch.setattr(scalar_recurrence, "_CHUNK", 8)
    for form in (reference, chunked):
        o, last = form(*leaves)
        gradients = torch.autograd.grad((o * weight).sum() + last.square().sum(), leaves)
        results.append([o, last, *gradients])
    for ours, definition in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, definition, rtol=1e-4, atol=1e-4)
    assert torch.equal(reference(*leaves[:4], None)[1], reference(*leaves[:4], torch.zeros_like(state))[1])
    torch.testing.assert_close(chunked(*leaves[:4], None)[1], chunked(*leaves[:4], torch.zeros_like(state))[1])


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_weak_gates_beside_strong_ones_keep_their_precision(spread):
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 70, 3, 4, generator=make) for _ in range(3))
    log_decay = -(spread * torch.randn(2, 70, 3, generator=make)).exp()
    results = []
    for form, dtype in ((chunked, torch.float32), (reference, torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (q, k, v, log_decay)]
        o, last = form(*leaves, None)
        results.append([o, last, *torch.autograd.grad(o.square().sum() + last.square().sum(), leaves)])
    for ours, definition in zip(*results, strict=True):
        assert (ours - definition).abs().max() < 1e-5 * definition.abs().max()
