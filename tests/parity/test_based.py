"""`based` against the weights of the paper, 1 + x + x²/2 for every query and key in float64, with every gradient."""

import pytest
import torch

from blocks.sequence.based import Based, taylor_features
from doge_lab.errors import UserError

BLOCK = "sequence/based"
ORACLE = "every weight of the paper, written out in float64"
SHAPES = [(2, 2, 8, 2, 4), (1, 13, 12, 3, 1), (2, 70, 16, 2, 5), (1, 133, 8, 1, 8)]
# rows, tokens, d_model, heads, feature_dim


def by_the_paper(w, x, n_heads, feature_dim):
    """Arora et al. 2024, section 4: every query with every key up to it."""
    heads = []
    for q, k, v in zip(*((x @ w[f"{name}.weight"].T).chunk(n_heads, -1) for name in "qkv"), strict=True):
        y = []
        for t in range(x.shape[1]):
            dot = (q[:, t, None] * k[:, : t + 1]).sum(-1, keepdim=True) / feature_dim**0.5
            weights = 1 + dot + dot**2 / 2
            y.append((weights * v[:, : t + 1]).sum(1) / weights.sum(1))
        heads.append(torch.stack(y, 1))
    return torch.cat(heads, -1) @ w["out.weight"].T


@pytest.mark.parametrize("strength", [0.2, 1.0, 3.0])
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("rows", "tokens", "d_model", "n_heads", "feature_dim"), SHAPES)
def test_forward_and_every_gradient(rows, tokens, d_model, n_heads, feature_dim, strength):
    torch.manual_seed(tokens)
    block = Based(d_model, n_heads=n_heads, feature_dim=feature_dim)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=strength * d_model**-0.5)
    x, direction = torch.randn(2, rows, tokens, d_model)
    x.requires_grad_()
    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    y, exact = block(x)[0], by_the_paper(w, exact_x, n_heads, feature_dim)
    assert (y - exact).abs().max() < 1e-5 * exact.abs().max()
    (y * direction).sum().backward()
    (exact * direction).sum().backward()
    assert (x.grad - exact_x.grad).abs().max() < 1e-5 * exact_x.grad.abs().max()
    largest = max(leaf.grad.abs().max() for leaf in w.values())
    for name, parameter in block.named_parameters():
        # a first token has one weight: the gradients of its query and key are the rounding of nothing
        scale = max(w[name].grad.abs().max(), 1e-2 * largest)
        assert (parameter.grad - w[name].grad).abs().max() < 1e-5 * scale, f"the gradient of {name} differs"


def test_a_first_token_gets_its_own_value():
    block = Based(12, n_heads=3)
    x = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x)[0], block.out(block.v(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 16])
def test_features_multiply_to_the_taylor_series(width):
    q, k = torch.randn(2, 50, width, generator=torch.Generator().manual_seed(0)).double()
    dot = (q * k).sum(-1) / width**0.5
    features = taylor_features(q), taylor_features(k)
    assert features[0].shape[-1] == 1 + width + width * (width + 1) // 2
    torch.testing.assert_close((features[0] * features[1]).sum(-1), 1 + dot + dot**2 / 2)


def test_the_cache_and_what_is_refused():
    block = Based(32, n_heads=2, feature_dim=16)
    assert block.init_cache(batch=3, capacity=100, dtype=torch.bfloat16).nbytes() == 3 * 2 * (153 * 17 - 1) * 4
    with pytest.raises(UserError, match="d_model=32 must be divisible by n_heads=3"):
        Based(32, n_heads=3)
