"""The delta rule against its recurrence written out in float64 with loops: outputs, last state and every gradient."""

import pytest
import torch
from torch.nn.functional import normalize

from doge_lab.ops import delta_rule
from doge_lab.ops.delta_rule import chunked, reference

ROWS, HEADS, KEY, VALUE = 2, 2, 3, 5
GATES = {  # centre of the logarithm of minus log_decay, and its spread over heads, channels and tokens
    "weak": (-6.0, 0.5),
    "ordinary": (-1.0, 1.0),
    "strong": (3.0, 1.0),
    "weak and strong": (0.0, 5.0),
}
NAMES = ("q", "k", "v", "w", "log_decay", "state", "c", "u")


def by_the_papers(q, k, v, w, log_decay, state, c=None, u=None):
    """Yang et al. 2024, equations 2 and 10, and Peng et al. 2025, equation 17, one row and head at a time."""
    outputs, states = torch.zeros_like(v), torch.zeros_like(state)
    log_decay = log_decay.expand(ROWS, -1, HEADS, KEY)
    for row in range(ROWS):
        for head in range(HEADS):
            s = state[row, head]
            for t in range(q.shape[1]):
                at = (row, t, head)
                unlearn = torch.eye(KEY, dtype=s.dtype) - torch.outer(w[at], k[at])
                s = unlearn @ torch.diag(log_decay[at].exp()) @ s + torch.outer(w[at], v[at])
                if c is not None:
                    s = s + torch.outer(c[at], u[at])
                outputs[at] = q[at] @ s
            states[row, head] = s
    return outputs, states


def draw(gates, tokens, decay_channels=KEY, added=False):
    """Random arguments in the order of NAMES; the same every time."""
    centre, spread = GATES[gates]
    torch.manual_seed(tokens)
    q, k, c = torch.randn(3, ROWS, tokens, HEADS, KEY)
    v, u = torch.randn(2, ROWS, tokens, HEADS, VALUE)
    k = normalize(k, dim=-1)
    w = 2 * torch.rand(ROWS, tokens, HEADS, 1) * normalize(k + 0.3 * torch.randn_like(k), dim=-1)
    log_decay = -(centre + spread * torch.randn(ROWS, tokens, HEADS, decay_channels)).exp()
    return [q, k, v, w, log_decay, torch.randn(ROWS, HEADS, KEY, VALUE), *([c, u] if added else [])]


def run(form, arguments, **options):
    *plain, state = arguments[:6]
    return form(*plain, state, tuple(arguments[6:]) or None, **options)


def assert_as_the_papers(form, arguments, **options):
    inputs = [tensor.requires_grad_() for tensor in arguments]
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    results, exact = run(form, inputs, **options), by_the_papers(*exact_inputs)
    for name, result, exact_result in zip(("output", "state"), results, exact, strict=True):
        off = (result - exact_result).abs().max() / exact_result.abs().max()
        assert off < 1e-5, f"the {name} is off by {off:.1e} of the largest"
    directions = [torch.randn_like(result) for result in results]
    gradients = torch.autograd.grad(results, inputs, directions)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, [direction.double() for direction in directions])
    largest = max(gradient.abs().max() for gradient in exact_gradients)
    for name, gradient, exact_gradient in zip(NAMES, gradients, exact_gradients, strict=False):
        # behind a closed gate gradients are next to nothing, and lost in the rounding of the others
        off = (gradient - exact_gradient).abs().max() / max(exact_gradient.abs().max(), 5e-2 * largest)
        assert off < 1e-5, f"the gradient of {name} is off by {off:.1e} of the largest"


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("decay_channels", [1, KEY])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("form", "tokens"), [(reference, 5), (chunked, 1), (chunked, 6), (chunked, 37)])
def test_outputs_state_and_every_gradient(form, tokens, gates, decay_channels, added):
    assert_as_the_papers(form, draw(gates, tokens, decay_channels, added))


@pytest.mark.parametrize("added", [False, True])
def test_weak_decays_known_to_be_weak_need_no_safe_blocks(added):
    arguments = draw("ordinary", 37, added=added)
    arguments[4] = arguments[4].clamp(min=-0.6)
    assert_as_the_papers(chunked, arguments, strongest=-0.6)


@pytest.mark.parametrize("gates", ["ordinary", "weak and strong"])
def test_the_larger_chunks_of_an_accelerator(gates, monkeypatch):
    monkeypatch.setattr(delta_rule, "_CHUNK", delta_rule._CHUNK_OFF_CPU)
    assert_as_the_papers(chunked, draw(gates, 70, decay_channels=1))


def test_no_decay_is_a_logarithm_of_zero_for_all():
    arguments = draw("weak", 21)
    arguments[4] = torch.zeros(1, 21, 1, 1)
    assert_as_the_papers(reference, arguments)
    assert_as_the_papers(chunked, draw("weak", 21)[:4] + arguments[4:])


@pytest.mark.parametrize("form", [reference, chunked])
def test_no_state_is_a_state_of_zeros(form):
    *arguments, state = draw("ordinary", 9)
    for result, expected in zip(form(*arguments, None), form(*arguments, torch.zeros_like(state)), strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("decay_channels", [1, KEY])
@pytest.mark.parametrize("gates", GATES)
def test_a_filled_state_is_continued_across_calls(gates, decay_channels):
    *arguments, state = draw(gates, 70, decay_channels)
    expected, last = reference(*arguments, state)
    outputs = []
    for part in zip(*(tensor.split([33, 1, 2, 34], dim=1) for tensor in arguments), strict=True):
        output, state = chunked(*part, state)
        outputs.append(output)
    assert (torch.cat(outputs, dim=1) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (state - last).abs().max() < 1e-5 * last.abs().max()
