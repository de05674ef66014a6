"""The fast single-neuron experts compute what gathering rows computes, gradients included, without gathering."""

import pytest
import torch
from largest_tensor import LargestTensor
from torch.nn import functional as F

from doge_lab.ops import picks as picked
from doge_lab.ops.picks import Picks, pick_dot, pick_sum

TOKENS, PICKS, EXPERTS, D = 150, 6, 20, 24
NAMES = ("x", "down", "up", "weights")


def inputs(dtype=torch.float64, n_experts=EXPERTS):
    generator = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, D), (n_experts, D), (n_experts, D), (TOKENS, PICKS))
    leaves = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    indices = torch.randint(0, n_experts - 1, (TOKENS, PICKS), generator=generator)  # nobody picks the last
    indices[0] = 3  # one token picks one expert over and over
    return [leaf.requires_grad_() for leaf in leaves], indices


def fast(x, down, up, weights, indices):
    picks = Picks.prepare(indices, len(down))
    return pick_sum(F.silu(pick_dot(x, down, picks)) * weights, up, picks)


def gathered(x, down, up, weights, indices):
    hidden = F.silu((down[indices] * x[:, None]).sum(-1)) * weights
    return (hidden[..., None] * up[indices]).sum(1)


def outputs(form, leaves, indices):
    y = form(*leaves, indices)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return {"y": y.detach(), **dict(zip(NAMES, torch.autograd.grad(y, leaves, target), strict=True))}


def assert_same(actual, expected, tolerance):
    for name, value in expected.items():
        difference = (actual[name].double() - value.double()).abs().max() / value.double().abs().max()
        assert difference <= tolerance, f"{name} is off by {difference:.1e}"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_outputs_and_gradients_are_those_of_gathered_rows(dtype, tolerance):
    leaves, indices = inputs(dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert_same(outputs(fast, leaves, indices), outputs(gathered, exact, indices), tolerance)


def test_an_expert_that_nobody_picks_has_no_gradient():
    leaves, indices = inputs()
    grads = outputs(fast, leaves, indices)
    assert not grads["down"][-1].any()
    assert not grads["up"][-1].any()


def test_numerical_gradients(monkeypatch):
    monkeypatch.setattr(picked, "_FEW_FLOATS", 0)
    (x, down, up, weights), indices = inputs()
    some = slice(0, 4)

    def run(*leaves):
        return fast(*leaves, indices[some])

    assert torch.autograd.gradcheck(run, (x[some], down, up, weights[some]))


def test_the_private_operator_is_there():
    """When this fails, PyTorch has renamed it: the fallback below still works, several times slower."""
    assert picked._SAMPLED_DOT is not None


@pytest.mark.parametrize("few", [{"_SAMPLED_DOT": None}, {"_FEW_FLOATS": 1 << 30}])
def test_the_forms_that_gather_agree(monkeypatch, few):
    leaves, indices = inputs()
    expected = outputs(fast, leaves, indices)
    for name, value in few.items():
        monkeypatch.setattr(picked, name, value)
    with LargestTensor() as largest:
        actual = outputs(fast, leaves, indices)
    assert largest.numel >= TOKENS * PICKS * D, "this was meant to gather"
    assert_same(actual, expected, 1e-14)


def test_nothing_of_the_size_of_the_gathered_rows_exists():
    leaves, indices = inputs()
    with LargestTensor() as largest:
        outputs(fast, leaves, indices)
    assert largest.numel <= TOKENS * D


@pytest.mark.parametrize("n_experts", [1 << 15, 1 << 16])
def test_tables_around_the_limit_of_the_radix_sort(n_experts):
    leaves, indices = inputs(n_experts=n_experts)
    assert_same(outputs(fast, leaves, indices), outputs(gathered, leaves, indices), 1e-14)


def test_counts_and_what_is_left_out_without_gradients():
    _, indices = inputs()
    picks = Picks.prepare(indices, EXPERTS)
    assert torch.equal(picks.counts, indices.flatten().bincount(minlength=EXPERTS))
    with torch.no_grad():
        assert Picks.prepare(indices, EXPERTS).by_row is None


def test_without_gradients_the_output_is_the_same():
    leaves, indices = inputs()
    expected = fast(*leaves, indices)
    with torch.inference_mode():
        assert torch.equal(fast(*leaves, indices), expected)


def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients():
    leaves, indices = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = fast(*leaves, indices)
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().sum(), leaves)
    assert {grad.dtype for grad in grads} == {torch.float32}


def test_it_is_captured_as_one_graph():
    leaves, indices = inputs(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    assert_same(outputs(compiled, leaves, indices), outputs(fast, leaves, indices), 0.0)
