"""Every op: its forms are one function, they stack along a replica axis, and the host looks at no number on the way."""

import copy

import pytest
import torch
from torch.utils import _pytree as pytree

from doge_lab.ops.catalogue import every_op
from doge_lab.ops.dispatch import REFERENCE, Example, Op, using

OPS = every_op()
FORMS = [(op, form) for op in OPS.values() for form in op.forms]
CASES = [(op, form, case) for op, form in FORMS for case in op.examples()]
CHOSEN = "its own choice"
GIVEN = object()
"""Stands for a tensor that a call is given: those of which gradients are taken, or all that replicas do not share."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def named(value):
    return value.name if isinstance(value, Op) else None


class Call:
    """A form of an op as a function of the floating-point tensors among an example's arguments."""

    def __init__(self, op, form, case, *, dtype=torch.float32, device="cpu", given=None):
        given = given or is_number
        self.example = op.examples()[case]
        self.run = op if form == CHOSEN else op.forms[form]
        leaves, self.layout = pytree.tree_flatten(self.example.arguments)
        self.others = [GIVEN if given(leaf) else on(device, leaf) for leaf in leaves]
        self.leaves = [leaf.to(device, dtype if is_number(leaf) else None) for leaf in leaves if given(leaf)]

    def __call__(self, *leaves):
        """All floating-point results, flat; then those that are integers."""
        following = iter(leaves)
        arguments = [next(following) if other is GIVEN else other for other in self.others]
        results = self.run(*self.example.prepare(*pytree.tree_unflatten(arguments, self.layout)))
        results = [result for result in pytree.tree_leaves(results) if isinstance(result, torch.Tensor)]
        return tuple(sorted(results, key=lambda result: not result.is_floating_point()))

    def loss(self, *leaves):
        """A number that depends on every result."""
        results = [result for result in self(*leaves) if result.is_floating_point()]
        return sum((result * weight(result)).sum() for result in results)


def is_number(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def is_stacked(leaf):
    """Numbers and positions differ between replicas; they share masks, as a batch of one shape does."""
    return isinstance(leaf, torch.Tensor) and leaf.dtype != torch.bool


def replica(leaf, number):
    if not is_number(leaf):
        return leaf.roll(number, dims=0)
    return leaf * (1 + 0.1 * torch.rand(leaf.shape, generator=torch.Generator().manual_seed(number)))


def on(device, leaf):
    return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf


def weight(result):
    angle = 0.7 * torch.arange(result.numel(), device=result.device, dtype=torch.float64)
    return angle.sin().to(result.dtype).view(result.shape)


def outcome(call):
    """The results and every gradient, detached."""
    leaves = [leaf.clone().requires_grad_() for leaf in call.leaves]
    results = call(*leaves)
    if not any(result.requires_grad for result in results):
        return [result.detach() for result in results]
    return [result.detach() for result in results] + list(torch.autograd.grad(call.loss(*leaves), leaves))


def assert_near(actual, expected, tolerance):
    assert len(actual) == len(expected)
    largest = max(float(each.abs().max()) for each in expected)
    for number, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.shape == theirs.shape, number
        if not theirs.is_floating_point():
            assert torch.equal(ours, theirs), number
            continue
        # What is next to nothing beside the rest is lost in the rounding of the rest.
        scale = max(float(theirs.abs().max()), 1e-2 * largest)
        assert float((ours - theirs).abs().max()) <= tolerance * scale, number


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("op", "form", "case"), CASES, ids=named)
def test_forms_are_one_function(op, form, case, dtype, tolerance):
    if dtype == torch.float64 and not op.examples()[case].in_float64:
        pytest.skip("the form is for float32 and coarser")
    expected = outcome(Call(op, REFERENCE, case, dtype=torch.float64))
    if dtype == torch.float32 and not is_differentiable(op, case):
        expected = outcome(Call(op, REFERENCE, case))  # a choice among numbers depends on their rounding
    actual = outcome(Call(op, form, case, dtype=dtype))
    assert_near([each.to(other.dtype) for each, other in zip(actual, expected, strict=True)], expected, tolerance)


def is_differentiable(op, case):
    return any(result.is_floating_point() for result in Call(op, REFERENCE, case)(*Call(op, REFERENCE, case).leaves))


@pytest.mark.parametrize(
    ("op", "form", "case"), [*CASES, *((op, CHOSEN, case) for op in OPS.values() for case in op.examples())], ids=named
)
def test_replicas_stack(op, form, case):
    """One call mapped over a leading axis gives what a call for each replica gives, and so do its gradients."""
    if form in op.not_stacked:
        pytest.skip(op.not_stacked[form])
    call = Call(op, form, case, given=is_stacked)
    replicas = [[replica(leaf, number) for leaf in call.leaves] for number in range(3)]
    stacked = [torch.stack(leaves) for leaves in zip(*replicas, strict=True)]
    separate = [torch.stack(results) for results in zip(*(call(*leaves) for leaves in replicas), strict=True)]
    assert_near(torch.vmap(call)(*stacked), separate, 2e-5)
    if is_differentiable(op, case):
        numbers = tuple(i for i, leaf in enumerate(call.leaves) if is_number(leaf))
        slope = torch.func.grad(call.loss, argnums=numbers)
        separate = [torch.stack(grads) for grads in zip(*(slope(*leaves) for leaves in replicas), strict=True)]
        assert_near(torch.vmap(slope)(*stacked), separate, 2e-5)


@pytest.mark.parametrize(("op", "form", "case"), CASES, ids=named)
def test_the_host_looks_at_nothing(op, form, case):
    """Captured as one graph, with the backward pass behind it; what depends on a number cannot be."""
    if form in op.looks:
        pytest.skip(op.looks[form])
    call = Call(op, form, case)
    torch._dynamo.reset()
    captured = copy.copy(call)
    captured.run = torch.compile(call.run, fullgraph=True, backend="eager")
    assert_near(outcome(captured), outcome(call), 2e-5)


@pytest.mark.parametrize(("op", "form", "case"), CASES, ids=named)
def test_nothing_depends_on_numbers_that_are_not_there(op, form, case):
    """Tensors without numbers (meta) go through, forward and backward: shapes depend on shapes alone."""
    if form in op.looks:
        pytest.skip(op.looks[form])
    expected = [result.shape for result in outcome(Call(op, form, case))]
    assert [result.shape for result in outcome(Call(op, form, case, device="meta"))] == expected


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("op", "form", "case"), CASES, ids=named)
def test_a_gpu_captures_it(op, form, case):
    """Forward and backward in one CUDA graph, replayed on other numbers."""
    if form in op.looks:
        pytest.skip(op.looks[form])
    call = Call(op, form, case, device="cuda")
    leaves = [leaf.clone().requires_grad_() for leaf in call.leaves]

    def step():
        results = call(*leaves)
        if not any(result.requires_grad for result in results):
            return results
        return (*results, *torch.autograd.grad(call.loss(*leaves), leaves))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # allocations and handles of the first calls are no part of a graph
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(0.9)
    graph.replay()
    expected = [result.detach().clone() for result in step()]
    assert_near([result.detach() for result in results], expected, 2e-5)


def test_a_form_is_chosen_by_the_arguments_unless_another_is_asked_for():
    op = OPS["gated_recurrence"]
    many = op.examples()["ordinary gates"].arguments
    one = (*(x[:, :1] for x in many[:4]), many[4])
    assert (op.form(*many), op.form(*one)) == ("chunked", REFERENCE)
    with using(REFERENCE):
        assert op.form(*many) == REFERENCE
        with using("chunked", op):
            assert (op.form(*one), OPS["delta_rule"].form(*many)) == ("chunked", REFERENCE)
        assert op.form(*one) == REFERENCE
    with using("fft"):  # a form of another op
        assert op.form(*many) == "chunked"
    assert op.form(*many) == "chunked"


def test_a_form_that_an_op_lacks_is_refused():
    op = OPS["gated_recurrence"]
    with (
        pytest.raises(ValueError, match="op 'gated_recurrence' has no form 'fft'; it has reference, chunked"),
        using("fft", op),
    ):
        pass
    with pytest.raises(ValueError, match="no form 'reference' among"):
        Op("nothing", {"fast": len}, lambda x: "fast", lambda: {"empty": Example(())})


def test_every_op_is_found_and_has_examples():
    assert len(OPS) >= 14
    assert all(op.examples() for op in OPS.values())
    assert all(set(op.not_stacked) | set(op.looks) <= set(op.forms) for op in OPS.values())
