"""`gated_linear_attention` against the paper's recurrence, written out in float64 with loops, gradients included."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from blocks.sequence.gated_linear_attention import GatedLinearAttention
from doge_lab.ops import gated_recurrence
from doge_lab.ops.gated_recurrence import chunked, reference

BLOCK = "sequence/gated_linear_attention"
ORACLE = "the recurrence of the paper, written out in float64"

BATCH, HEADS, KEY, VALUE = 2, 2, 3, 5
GATES = {  # centre of the gate's logits, their spread over channels and tokens, and the normaliser
    "weak": (6.0, 1.0, 16.0),
    "ordinary": (0.0, 1.0, 16.0),
    "strong": (-20.0, 5.0, 1.0),
    "weak and strong": (0.0, 60.0, 1.0),
    "closed": (-500.0, 1.0, 1.0),
}


def by_the_paper(q, k, v, log_decay, state):
    """Yang et al. 2023, equation 3: one row and head at a time, the state after the last token too."""
    outputs, states = torch.zeros_like(v), torch.zeros_like(state)
    for row in range(q.shape[0]):
        for head in range(q.shape[2]):
            s = state[row, head]
            for t in range(q.shape[1]):
                s = torch.diag(log_decay[row, t, head].exp()) @ s + torch.outer(k[row, t, head], v[row, t, head])
                outputs[row, t, head] = q[row, t, head] @ s
            states[row, head] = s
    return outputs, states


def draw(gates, tokens):
    """Random q, k, v, log_decay and state; the same every time."""
    centre, spread, normaliser = GATES[gates]
    torch.manual_seed(0)
    q, k = torch.randn(2, BATCH, tokens, HEADS, KEY)
    v, state = torch.randn(BATCH, tokens, HEADS, VALUE), torch.randn(BATCH, HEADS, KEY, VALUE)
    return [q, k, v, logsigmoid(centre + spread * torch.randn_like(q)) / normaliser, state]


@pytest.fixture(params=["by the gates", "safe blocks"])
def sizes(request, monkeypatch):
    """Chunks of the size that the gates allow, or those that a compiler and a GPU always take."""
    if request.param == "safe blocks":
        monkeypatch.setattr(gated_recurrence, "chunk_sizes", lambda log_decay: (16, 4))


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("recur", [chunked, reference])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("tokens", [1, 6, 37, 64])
def test_outputs_state_and_every_gradient(recur, gates, tokens):
    inputs = [tensor.requires_grad_() for tensor in draw(gates, tokens)]
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    results, exact = recur(*inputs), by_the_paper(*exact_inputs)
    for name, result, exact_result in zip(("output", "state"), results, exact, strict=True):
        off = (result - exact_result).abs().max() / exact_result.abs().max()
        assert off < 1e-5, f"the {name} is off by {off:.1e} of the largest"
    directions = [torch.randn_like(result) for result in results]
    gradients = torch.autograd.grad(results, inputs, directions)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, [direction.double() for direction in directions])
    largest = max(gradient.abs().max() for gradient in exact_gradients)
    names = ("q", "k", "v", "log_decay", "state")
    for name, gradient, exact_gradient in zip(names, gradients, exact_gradients, strict=True):
        # the gradient of a closed gate, next to nothing, is lost in the rounding of the others
        off = (gradient - exact_gradient).abs().max() / max(exact_gradient.abs().max(), 1e-2 * largest)
        assert off < 1e-5, f"the gradient of {name} is off by {off:.1e} of the largest"


def test_the_block_around_it():
    d_model, tokens = 12, 9
    torch.manual_seed(0)
    block = GatedLinearAttention(d_model, n_heads=2, expand_k=0.5, expand_v=1.5, gate_normaliser=4.0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
        block.v.weight.mul_(1e-3)  # so small that the norm's epsilon shows how outputs are scaled
    x, direction = torch.randn(2, BATCH, tokens, d_model)
    y, _ = block(x)
    (y * direction).sum().backward()

    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    x = x.double()
    q, k, v, gate = (x @ w[f"{name}.weight"].T for name in ("q", "k", "v", "gate"))
    logit = x @ w["decay_down.weight"].T @ w["decay_up.weight"].T + w["decay_up.bias"]
    q, k, v, logit = (channels.view(BATCH, tokens, 2, -1) for channels in (q, k, v, logit))
    o, _ = by_the_paper(
        q / 3**0.5, k, v, torch.log(torch.sigmoid(logit) ** (1 / 4)), torch.zeros(BATCH, 2, 3, 9).double()
    )
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w["norm.weight"]
    exact = (o.flatten(2) * gate * gate.sigmoid()) @ w["out.weight"].T
    (exact * direction).sum().backward()

    assert (y - exact).abs().max() < 1e-5 * exact.abs().max()
    for name, parameter in block.named_parameters():
        off = (parameter.grad - w[name].grad).abs().max() / w[name].grad.abs().max()
        assert off < 1e-5, f"the gradient of {name} is off by {off:.1e} of the largest"


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("gates", GATES)
def test_a_filled_state_is_continued_across_chunks(gates):
    q, k, v, log_decay, state = draw(gates, 70)
    expected, last = reference(q, k, v, log_decay, state)
    outputs = []
    for part in zip(*(tensor.split([33, 1, 2, 34], dim=1) for tensor in (q, k, v, log_decay)), strict=True):
        output, state = chunked(*part, state)
        outputs.append(output)
    assert (torch.cat(outputs, dim=1) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (state - last).abs().max() < 1e-5 * last.abs().max()


def test_ordinary_gates_take_whole_chunks_and_strong_ones_safe_blocks():
    ordinary, strong = torch.full((1, 2), -0.1), torch.tensor([[-0.1, -20.0]])
    assert gated_recurrence.chunk_sizes(ordinary) == (32, 32)
    assert gated_recurrence.chunk_sizes(strong) == (16, 4)
