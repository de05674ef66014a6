"""`gated_slot_attention` against the paper's recurrence, written out in float64 with loops, gradients included."""

import pytest
import torch

from blocks.sequence.gated_slot_attention import GatedSlotAttention
from doge_lab.ops import gated_recurrence, value_gated_recurrence
from parity.compare import assert_close

BLOCK = "sequence/gated_slot_attention"
ORACLE = "the recurrence of the paper, written out in float64"

BATCH, D_MODEL = 2, 12
GATES = {"weak": (0.1, 16.0), "ordinary": (1.0, 8.0), "strong": (8.0, 1.0), "closing": (60.0, 1.0)}


def by_the_paper(block, w, x):
    """Zhang et al. 2024, equations 6 to 8, for one unpadded row [T, D]."""
    c = block.config
    width, slots = D_MODEL // c.n_heads, c.n_slots
    q, k, v = (swish(x @ w[f"{name}.weight"].T) for name in ("q", "k", "v"))
    gates = torch.exp(torch.nn.functional.logsigmoid(x @ w["decay.weight"].T) / c.gate_normaliser)
    rows = []
    keys = values = [torch.zeros(slots, width, dtype=x.dtype)] * c.n_heads
    for t in range(len(x)):
        heads = []
        for head in range(c.n_heads):
            mine, gate = slice(head * width, (head + 1) * width), gates[t, head * slots : (head + 1) * slots]
            new_keys = torch.diag(gate) @ keys[head] + torch.outer(1 - gate, k[t, mine])
            new_values = torch.diag(gate) @ values[head] + torch.outer(1 - gate, v[t, mine])
            keys, values = replaced(keys, head, new_keys), replaced(values, head, new_values)
            scores = torch.exp(new_keys @ q[t, mine])
            heads.append(new_values.T @ (scores / scores.sum()))
        rows.append(torch.cat(heads))
    o = swish(torch.stack(rows))
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["norm.weight"]
    return o @ w["out.weight"].T


def swish(x):
    return x / (1 + torch.exp(-x))


def replaced(states, head, state):
    return [*states[:head], state, *states[head + 1 :]]


@pytest.fixture(params=["by the gates", "safe blocks"])
def sizes(request, monkeypatch):
    """Chunks of the size that the gates allow, or those that a compiler and a GPU always take."""
    if request.param == "safe blocks":
        for layer in (gated_recurrence, value_gated_recurrence):
            monkeypatch.setattr(layer, "chunk_sizes", lambda log_decay: (16, 4))


@pytest.mark.usefixtures("sizes")
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("tokens", "n_heads", "n_slots", "seed"), [(5, 1, 2, 0), (37, 3, 5, 1)])
def test_forward_and_every_gradient(tokens, n_heads, n_slots, seed, gates):
    spread, normaliser = GATES[gates]
    torch.manual_seed(seed)
    block = GatedSlotAttention(D_MODEL, n_heads=n_heads, n_slots=n_slots, gate_normaliser=normaliser)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.normal_(std=0.3).mul_(spread if name.startswith("decay") else 1.0)
            parameter.add_(1.0 if "norm" in name else 0.0)
    pads = (tokens // 3, 0)
    x = torch.randn(BATCH, tokens, D_MODEL, requires_grad=True)
    real = torch.arange(tokens)[None] >= torch.tensor(pads)[:, None]
    direction = torch.randn_like(x) * real[..., None]
    y, _ = block(x, real)
    (y * direction).sum().backward()

    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    x_exact, loss = x.detach().double().requires_grad_(), 0.0
    for row, pad in enumerate(pads):
        exact = by_the_paper(block, w, x_exact[row, pad:])
        assert_close(y[row, pad:], exact, f"row {row}")
        loss = loss + (exact * direction[row, pad:]).sum()
    loss.backward()
    assert_close(x.grad, x_exact.grad, "the input's gradient")
    largest = max(tensor.grad.abs().max() for tensor in w.values())
    for name, parameter in block.named_parameters():
        assert_close(parameter.grad, w[name].grad, f"the gradient of {name}", least=1e-2 * largest)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_a_filled_state_is_continued_across_chunks(spread):
    torch.manual_seed(0)
    q, k = torch.randn(2, BATCH, 70, 2, 3)
    v, log_decay = torch.randn(BATCH, 70, 2, 5), -spread * torch.rand(BATCH, 70, 2, 5)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v, log_decay, torch.randn(BATCH, 2, 3, 5))]
    expected, last = value_gated_recurrence.reference(*inputs)
    outputs, state = [], inputs[-1]
    for part in zip(*(tensor.split([33, 1, 2, 34], dim=1) for tensor in inputs[:-1]), strict=True):
        output, state = value_gated_recurrence.chunked(*part, state)
        outputs.append(output)
    assert_close(torch.cat(outputs, dim=1), expected, "the output")
    assert_close(state, last, "the state")
    directions = [torch.randn_like(expected), torch.randn_like(last)]
    gradients = torch.autograd.grad([torch.cat(outputs, dim=1), state], inputs, directions)
    exact_gradients = torch.autograd.grad([expected, last], inputs, directions)
    for name, gradient, exact in zip(("q", "k", "v", "log_decay", "state"), gradients, exact_gradients, strict=True):
        assert_close(gradient, exact, f"the gradient of {name}")
