"""What blocks that retrieve rows are compared with: every pair of keys scored in a loop, and whole gradients."""

import pytest
import torch
from largest_tensor import LargestTensor

from doge_lab.ops import picks

D_MODEL = 12
TOKENS, WIDTH = 200, 64


def scaled(vector, norm):
    """One vector, normalised in the way that is named."""
    if norm == "none":
        return vector
    if norm == "layer":
        vector = vector - vector.mean()
    return vector / (vector.square().mean() + 1e-6).sqrt()


def weighted(every, chosen, normalisation):
    """Weights of the chosen from all scores of a query."""
    if normalisation == "sigmoid":
        return [1 / (1 + (-every[e]).exp()) for e in chosen]
    total = sum(score.exp() for score in (every if normalisation == "softmax_all" else [every[e] for e in chosen]))
    return [every[e].exp() / total for e in chosen]


def product_key_picks(router, token, *, norm, top_k, normalisation):
    """(slot, weight) of everything that the heads retrieve for one token, from the scores of all n² pairs."""
    _, n_heads, n, d_half = router.keys.shape
    gain = torch.ones(2, n_heads, 1, d_half) if router.key_gain is None else router.key_gain
    key_norm = "none" if router.key_gain is None else "rms"
    picks = []
    for head in range(n_heads):
        query = scaled(router.query.weight.unflatten(0, (n_heads, -1))[head] @ token, norm)
        row, column = query[:d_half], query[d_half:]
        every = [
            row @ (scaled(router.keys[0, head, i], key_norm) * gain[0, head, 0])
            + column @ (scaled(router.keys[1, head, j], key_norm) * gain[1, head, 0])
            for i in range(n)
            for j in range(n)
        ]
        chosen = sorted(range(n * n), key=lambda e: -every[e].item())[:top_k]
        picks += zip(chosen, weighted(every, chosen, normalisation), strict=True)
    return picks


def assert_same_function(block, looped, seed, *, tolerance=1e-9):
    """Outputs and the gradients of the input and of every parameter, in float64, with any auxiliary loss."""
    block = block.double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, block.d_model, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = block(x)
    loss = block.router_stats.loss
    z, expected_loss = looped(block, x.flatten(0, 1))
    close(y, z.view_as(y), "the output", tolerance)
    leaves = {"the input": x, **dict(block.named_parameters())}
    mine = torch.autograd.grad((y * target).sum() + loss, list(leaves.values()))
    loops = torch.autograd.grad((z.view_as(y) * target).sum() + expected_loss, list(leaves.values()))
    for name, my_grad, loop_grad in zip(leaves, mine, loops, strict=True):
        assert loop_grad.any(), f"{name} has no gradient"
        close(my_grad, loop_grad, f"the gradient of {name}", tolerance)


def close(actual, expected, what, tolerance):
    off = (actual - expected).abs().max() / expected.abs().max()
    assert off < tolerance, f"{what} is off by {off:.1e} of the largest"


def assert_rows_are_never_held(build, n_picks):
    """Nothing of the size of the gathered rows [tokens, picks, d] exists, forward or backward."""
    gathered = TOKENS * n_picks * WIDTH
    assert _largest(build) < gathered / 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picks, "_FEW_FLOATS", gathered)
        assert _largest(build) >= gathered, "this was meant to gather"


def _largest(build):
    torch.manual_seed(0)
    block, x = build(), torch.randn(1, TOKENS, WIDTH)
    with LargestTensor() as largest:
        block(x).square().sum().backward()
    return largest.numel
