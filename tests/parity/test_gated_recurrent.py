"""`gated_recurrent` against the paper's equations, written out in float64 with loops, gradients included."""

import pytest
import torch

from blocks.sequence.gated_recurrent import GatedRecurrent
from doge_lab.ops.elementwise_recurrence import chunked, reference
from parity.compare import assert_close

BLOCK = "sequence/gated_recurrent"
ORACLE = "the recurrence of the paper, written out in float64"

FORMS = [{"cell": cell, "candidate": candidate} for cell in ("gru", "lstm") for candidate in ("positive", "linear")]
D_MODEL, BATCH = 6, 2


def by_the_paper(x, w, cell, candidate, state):
    """Feng et al. 2024, sections 3.1 and 3.2 (plain) and appendix B (positive): one row and one token at a time."""
    channels, rows = state.shape[1], []
    for row in range(len(x)):
        h, outputs = state[row], []
        for token in x[row]:
            gates = torch.sigmoid(w["gates.weight"] @ token + w["gates.bias"])
            written = w["candidate.weight"] @ token + w["candidate.bias"]
            if candidate == "positive":
                written = torch.where(written >= 0, written + 0.5, torch.sigmoid(written))
            if cell == "gru":
                h = (1 - gates) * h + gates * written
            else:
                forget, write = gates[:channels], gates[channels:]
                h = forget / (forget + write) * h + write / (forget + write) * written
            outputs.append(w["out.weight"] @ h)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
@pytest.mark.parametrize(("tokens", "expand", "scale"), [(1, 1.0, 1.0), (9, 0.5, 5.0), (70, 1.5, 1.0), (97, 1.0, 0.1)])
def test_outputs_and_every_gradient(form, tokens, expand, scale):
    torch.manual_seed(tokens)
    block = GatedRecurrent(D_MODEL, **form, expand=expand)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
        block.gates.weight.mul_(scale)
    x = torch.randn(BATCH, tokens, D_MODEL, requires_grad=True)
    direction = torch.randn(BATCH, tokens, D_MODEL)
    y, _ = block(x)
    (y * direction).sum().backward()

    exact_x = x.detach().double().requires_grad_()
    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    state = torch.zeros(BATCH, block.channels).double()
    exact = by_the_paper(exact_x, w, form["cell"], form["candidate"], state)
    (exact * direction).sum().backward()
    assert_close(y, exact, "the output")
    assert_close(x.grad, exact_x.grad, "the gradient of the input")
    for name, parameter in block.named_parameters():
        assert_close(parameter.grad, w[name].grad, f"the gradient of {name}")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_a_given_state_is_continued(form):
    torch.manual_seed(0)
    block, x, state = GatedRecurrent(D_MODEL, **form), torch.randn(BATCH, 40, D_MODEL), torch.randn(BATCH, D_MODEL)
    cache = block.init_cache(batch=BATCH, capacity=40)
    cache["state"] = state
    w = {name: parameter.detach().double() for name, parameter in block.named_parameters()}
    exact = by_the_paper(x.double(), w, form["cell"], form["candidate"], state.double())
    with torch.no_grad():
        for chunk, expected in zip(x.split([1, 37, 2], 1), exact.split([1, 37, 2], 1), strict=True):
            assert_close(block(chunk, None, cache)[0], expected, f"the chunk of {chunk.shape[1]} tokens")
            cache.advance(chunk.shape[1])


@pytest.mark.parametrize("gate", [-200.0, -3.0, 0.0, 3.0, 200.0])
@pytest.mark.parametrize("tokens", [1, 31, 33, 64, 100])
def test_the_scan_is_exact_for_gates_of_any_strength(gate, tokens):
    torch.manual_seed(0)
    decay = torch.sigmoid(gate + 2 * torch.randn(BATCH, tokens, 5)).requires_grad_()
    written, state = (torch.randn(*shape, requires_grad=True) for shape in ((BATCH, tokens, 5), (BATCH, 5)))
    exact_inputs = [each.detach().double().requires_grad_() for each in (decay, written, state)]
    states, exact = chunked(decay, written, state), reference(*exact_inputs)
    assert_close(states, exact, "the states")
    direction = torch.randn_like(states)
    gradients = torch.autograd.grad(states, (decay, written, state), direction)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, direction.double())
    for name, gradient, expected in zip(("decay", "written", "state"), gradients, exact_gradients, strict=True):
        off = (gradient - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert off < 1e-5, f"the gradient of {name} is off by {off:.1e} of the largest"
