"""`hgrn2` against the recurrence of the paper, one head and token at a time in float64, with every gradient."""

import pytest
import torch

from blocks.sequence.hgrn2 import Hgrn2
from doge_lab.errors import UserError

BLOCK = "sequence/hgrn2"
ORACLE = "the recurrence of the paper, written out in float64"
SHAPES = [(2, 1, 8, 4), (1, 19, 12, 3), (2, 40, 16, 16), (1, 101, 6, 2)]  # rows, tokens, d_model, expand_ratio
GATES = {"weak": 0.1, "ordinary": 0.5, "strong": 10.0, "closed": 100.0}  # spread of the forget gate's weights


def by_the_paper(w, x, width, bound):
    """Qin et al. 2024, equation 4, with the bound of Qin et al. 2023, equation 4."""
    outputs = []
    for row in x:
        q, logit, v = (row @ w[f"{name}.weight"].T for name in ("q", "forget", "v"))
        q, f = q * q.sigmoid(), bound + (1 - bound) * logit.sigmoid()
        heads = []
        for q_h, f_h, v_h in zip(*(channels.split(width, -1) for channels in (q, f, v)), strict=True):
            state, o = torch.zeros(width, width).double(), []
            for t in range(len(row)):
                state = torch.diag(f_h[t]) @ state + torch.outer(1 - f_h[t], v_h[t])
                o.append(q_h[t] @ state)
            heads.append(torch.stack(o))
        o = torch.cat(heads, -1)
        normed = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w["norm.weight"]
        outputs.append(normed @ w["out.weight"].T)
    return torch.stack(outputs)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("bound", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("rows", "tokens", "d_model", "width"), SHAPES)
def test_forward_and_every_gradient(rows, tokens, d_model, width, gates, bound):
    torch.manual_seed(tokens)
    block = Hgrn2(d_model, expand_ratio=width, lower_bound=bound)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
        block.forget.weight.mul_(GATES[gates] / 0.5)
    x, direction = torch.randn(2, rows, tokens, d_model)
    x.requires_grad_()
    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    y, exact = block(x)[0], by_the_paper(w, exact_x, width, bound)
    assert (y - exact).abs().max() < 1e-5 * exact.abs().max()
    (y * direction).sum().backward()
    (exact * direction).sum().backward()
    assert (x.grad - exact_x.grad).abs().max() < 3e-5 * exact_x.grad.abs().max()
    for name, parameter in block.named_parameters():
        off = (parameter.grad - w[name].grad).abs().max() / w[name].grad.abs().max()
        assert off < 3e-5, f"the gradient of {name} is off by {off:.1e} of the largest"


def test_deeper_layers_keep_more():
    assert [Hgrn2(16, layer_idx=layer, n_layers=4).lower_bound for layer in range(4)] == [0, 0.25, 0.5, 0.75]
    assert Hgrn2(16, layer_idx=3, n_layers=4, lower_bound=0.1).lower_bound == 0.1


def test_the_cache_and_what_is_refused():
    block = Hgrn2(32, expand_ratio=8)
    assert block.init_cache(batch=3, capacity=100, dtype=torch.bfloat16).nbytes() == 3 * 32 * 8 * 4
    for options, message in (
        ({"expand_ratio": 5}, "d_model=32 must be divisible by expand_ratio=5"),
        ({"lower_bound": 1.0}, "lower_bound"),
    ):
        with pytest.raises(UserError, match=message):
            Hgrn2(32, **options)
