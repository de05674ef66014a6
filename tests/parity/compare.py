"""What the comparisons share: how near is near, and both sides on the same numbers."""

import torch


def assert_close(actual, expected, what, *, tolerance=1e-5, least=0.0):
    """The largest difference is below `tolerance` of the largest number expected, or of `least` where that is more."""
    off = (actual - expected).abs().max() / expected.abs().max().clamp(min=least)
    assert off < tolerance, f"{what} is off by {off:.1e} of the largest"


def assert_same_forward_and_backward(run, their_run, shape, *, mask=None, gradient_tolerance=1e-5, least=0.0):
    """The same output, and the same gradient of the input; parameters of both sides keep theirs, to be compared.

    `mask` [B, T] is zero where tokens are padding, whose outputs may be anything.
    """
    x = torch.randn(shape, requires_grad=True)
    x_theirs = x.detach().clone().requires_grad_()
    real = 1.0 if mask is None else mask[..., None]
    direction = torch.randn(shape) * real
    y, expected = run(x), their_run(x_theirs)
    assert_close(y * real, expected * real, "the output", least=least)
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    assert_close(x.grad, x_theirs.grad, "the input's gradient", tolerance=gradient_tolerance, least=least)


def assert_same_decoding(ours, their_run, x, parts, config, least=0.0):
    """The same output of each of the `parts` that `x` is cut into, with a cache on both sides; returns both caches.

    their_run: of the tokens, transformers' cache, and how many tokens were seen.
    """
    from transformers import DynamicCache

    cache, their_cache = ours.init_cache(batch=len(x), capacity=x.shape[1]), DynamicCache(config=config)
    with torch.no_grad():
        for part in x.split(parts, dim=1):
            seen = cache.position
            y, _ = ours(part, None, cache)
            cache.advance(part.shape[1])
            what = f"the output of tokens {seen} to {cache.position - 1}"
            assert_close(y, their_run(part, their_cache, seen), what, least=least)
    return cache, their_cache
