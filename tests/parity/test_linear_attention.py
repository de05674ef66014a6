"""`linear_attention` against the weights of the paper, token by token in float64, forward and every gradient."""

import pytest
import torch

from blocks.sequence.linear_attention import LinearAttention
from doge_lab.errors import UserError

BLOCK = "sequence/linear_attention"
ORACLE = "every weight of the paper, written out in float64"
FORMS = [("elu1", "keys"), ("relu", "keys"), ("hedgehog", "keys"), ("identity", "output"), ("elu1", "output")]
SHAPES = [(2, 1, 8, 2), (1, 13, 12, 3), (2, 70, 16, 2), (1, 133, 8, 1)]  # rows, tokens, d_model, heads


def feature(name, x, learned):
    if name == "hedgehog":
        x = x @ learned
        return torch.cat([torch.softmax(x, -1), torch.softmax(-x, -1)], -1)
    return {"elu1": torch.where(x > 0, x + 1, x.exp()), "relu": x * (x > 0), "identity": x}[name]


def by_the_paper(w, x, n_heads, feature_map, normalise):
    """Katharopoulos et al. 2020, equation 8: every query with every key up to it."""
    width, heads = x.shape[-1] // n_heads, []
    for head in range(n_heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (x @ w[f"{name}.weight"][part].T for name in ("q", "k", "v"))
        learned = [w[f"{name}_features"][head] if feature_map == "hedgehog" else None for name in ("q", "k")]
        q, k = feature(feature_map, q, learned[0]), feature(feature_map, k, learned[1])
        y = []
        for t in range(x.shape[1]):
            weights = (q[:, t, None] * k[:, : t + 1]).sum(-1, keepdim=True)
            o = (weights * v[:, : t + 1]).sum(1)
            if normalise == "keys":
                y.append(o / (weights.sum(1) + 1e-6))
            else:
                y.append(o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w["norm.weight"])
        heads.append(torch.stack(y, 1))
    return torch.cat(heads, -1) @ w["out.weight"].T


def off(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("feature_map", "normalise"), FORMS)
@pytest.mark.parametrize(("rows", "tokens", "d_model", "n_heads"), SHAPES)
def test_forward_and_every_gradient(rows, tokens, d_model, n_heads, feature_map, normalise):
    torch.manual_seed(tokens)
    block = LinearAttention(d_model, n_heads=n_heads, feature_map=feature_map, normalise=normalise)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
        block.k.weight.lerp_(block.q.weight, 0.7)  # weights of mostly one sign: no norm divides by next to nothing
    x, direction = torch.randn(2, rows, tokens, d_model)
    x.requires_grad_()
    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    y, exact = block(x)[0], by_the_paper(w, exact_x, n_heads, feature_map, normalise)
    assert off(y, exact) < 1e-5
    (y * direction).sum().backward()
    (exact * direction).sum().backward()
    largest = max(leaf.grad.abs().max() for leaf in w.values())
    for name, ours, theirs in [
        ("x", x, exact_x),
        *((name, parameter, w[name]) for name, parameter in block.named_parameters()),
    ]:
        # one token's weights cancel: the gradients of its query and key are the rounding of nothing
        scale = max(theirs.grad.abs().max(), 1e-2 * largest)
        assert (ours.grad - theirs.grad).abs().max() / scale < 3e-5, f"the gradient of {name} differs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "d_model=32 must be divisible by n_heads=3"),
        ({"feature_map": "identity"}, "say normalise: output, or feature_map: elu1"),
        ({"feature_map": "hedgehog", "n_heads": 32}, "use fewer heads"),
    ],
)
def test_errors_say_the_rule(options, message):
    with pytest.raises(UserError) as error:
        LinearAttention(32, **options)
    assert message in str(error.value)


def test_the_sum_of_the_keys_is_in_the_float32_state():
    caches = [
        LinearAttention(32, **options).init_cache(batch=3, capacity=100, dtype=torch.bfloat16)
        for options in ({}, {"normalise": "output"}, {"feature_map": "hedgehog", "n_heads": 2})
    ]
    assert [cache.nbytes() for cache in caches] == [3 * 4 * size for size in (4 * 8 * 9, 4 * 8 * 8, 2 * 32 * 17)]
