"""`titans_memory` against the paper's recurrence, written out in float64 with loops, gradients included."""

import pytest
import torch
from torch.nn.functional import logsigmoid, normalize

from blocks.sequence.titans_memory import TitansMemory
from doge_lab.ops.momentum_recurrence import chunked, reference

BLOCK = "sequence/titans_memory"
ORACLE = "the recurrence of the paper, written out in float64"

BATCH, HEADS, KEY, VALUE = 2, 2, 4, 3
RATES = {  # centre and spread of the logits of forgetting, momentum and learning
    "ordinary": ((-4.0, 0.0, 0.0), 1.0),
    "no momentum": ((-4.0, -200.0, 0.0), 1.0),
    "no forgetting": ((-200.0, 0.0, 0.0), 1.0),
    "nothing learned": ((0.0, 0.0, -20.0), 1.0),
    "much momentum": ((2.0, 4.0, 1.0), 1.0),
    "all forgotten": ((200.0, 0.0, 0.0), 1.0),
    "weak and strong": ((0.0, 0.0, 0.0), 30.0),
}


def by_the_paper(q, k, v, logits, state):
    """Behrouz et al. 2024, the update with momentum and forgetting for l = |M k - v|² / 2.

    One row and head at a time, with the matrix on the left as in the paper: [V, K].
    """
    outputs, states = torch.zeros_like(v), torch.zeros_like(state)
    alpha, eta, theta = torch.sigmoid(logits)
    for row in range(len(q)):
        for head in range(q.shape[2]):
            memory, surprise = state[row, head, 0].T, state[row, head, 1].T
            for t in range(q.shape[1]):
                gradient = torch.outer(memory @ k[row, t, head] - v[row, t, head], k[row, t, head])
                surprise = eta[row, t, head] * surprise - theta[row, t, head] * gradient
                memory = (1 - alpha[row, t, head]) * memory + surprise
                outputs[row, t, head] = memory @ q[row, t, head]
            states[row, head, 0], states[row, head, 1] = memory.T, surprise.T
    return outputs, states


def draw(rates, tokens):
    """Random q, k, v, logits of the rates and a state; the same every time."""
    centre, spread = RATES[rates]
    torch.manual_seed(tokens)
    q, k = normalize(torch.randn(2, BATCH, tokens, HEADS, KEY), dim=-1)
    v, state = torch.randn(BATCH, tokens, HEADS, VALUE), torch.randn(BATCH, HEADS, 2, KEY, VALUE)
    logits = torch.tensor(centre)[:, None, None, None] + spread * torch.randn(3, BATCH, tokens, HEADS)
    return [q, k, v, logits, state]


def as_rates(logits):
    forget, momentum, learn = logits
    return torch.stack([logsigmoid(-forget), logsigmoid(momentum), learn.sigmoid(), torch.ones_like(learn)])


def close(actual, expected, what, largest=None):
    off = (actual - expected).abs().max() / (expected.abs().max() if largest is None else largest)
    assert off < 1e-5, f"{what} is off by {off:.1e} of the largest"


@pytest.mark.parametrize("recur", [chunked, reference])
@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("tokens", [1, 7, 40, 65])
def test_outputs_state_and_every_gradient(recur, rates, tokens):
    inputs = [tensor.requires_grad_() for tensor in draw(rates, tokens)]
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    q, k, v, logits, state = inputs
    results, exact = recur(q, k, v, as_rates(logits), state), by_the_paper(*exact_inputs)
    for name, result, exact_result in zip(("output", "state"), results, exact, strict=True):
        close(result, exact_result, f"the {name}")
    directions = [torch.randn_like(result) for result in results]
    gradients = torch.autograd.grad(results, inputs, directions)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, [direction.double() for direction in directions])
    largest = max(gradient.abs().max() for gradient in exact_gradients)
    for name, gradient, expected in zip(("q", "k", "v", "rates", "state"), gradients, exact_gradients, strict=True):
        # the gradient of a closed gate, next to nothing, is lost in the rounding of the others
        close(gradient, expected, f"the gradient of {name}", expected.abs().max().clamp(min=1e-2 * largest))


@pytest.mark.parametrize("recur", [chunked, reference])
def test_tokens_that_do_not_count_change_nothing(recur):
    q, k, v, logits, state = draw("ordinary", 50)
    real = torch.rand(50) < 0.6
    outputs, last = recur(q, k, v, as_rates(logits) * real[:, None], state)
    kept = [tensor[:, real] for tensor in (q, k, v)]
    expected, expected_last = reference(*kept, as_rates(logits[:, :, real]), state)
    close(outputs[:, real], expected, "the output")
    close(last, expected_last, "the state")


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("heads", "expand_k", "expand_v", "kernel"), [(2, 0.5, 1.5, 4), (1, 1.0, 0.5, 2)])
def test_the_block_around_it(heads, expand_k, expand_v, kernel):
    d_model, tokens = 8, 37
    torch.manual_seed(0)
    options = {"n_heads": heads, "expand_k": expand_k, "expand_v": expand_v, "kernel_size": kernel}
    block = TitansMemory(d_model, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    x, direction = torch.randn(2, BATCH, tokens, d_model)
    x.requires_grad_()
    y, _ = block(x)
    (y * direction).sum().backward()

    w = {name: parameter.detach().double().requires_grad_() for name, parameter in block.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    before = exact_x @ w["qkv.weight"].T
    rows = []
    for t in range(tokens):
        taps = [w["conv.weight"][j] * before[:, t - kernel + 1 + j] for j in range(kernel) if t - kernel + 1 + j >= 0]
        rows.append(sum(taps))
    qkv = torch.stack(rows, dim=1)
    qkv = qkv * qkv.sigmoid()
    key_dim = round(expand_k * d_model)
    q, k, v = (
        qkv[..., a:b].unflatten(-1, (heads, -1)) for a, b in ((0, key_dim), (key_dim, 2 * key_dim), (2 * key_dim, None))
    )
    q, k = (each / each.square().sum(-1, keepdim=True).sqrt() for each in (q, k))
    logits = (exact_x @ w["rates.weight"].T + w["rates.bias"]).unflatten(-1, (3, heads)).movedim(2, 0)
    o, _ = by_the_paper(q, k, v, logits, torch.zeros(BATCH, heads, 2, k.shape[-1], v.shape[-1]).double())
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w["norm.weight"]
    gate = exact_x @ w["gate.weight"].T
    exact = (o.flatten(2) * gate * gate.sigmoid()) @ w["out.weight"].T
    (exact * direction).sum().backward()
    close(y, exact, "the output")
    close(x.grad, exact_x.grad, "the gradient of the input")
    for name, parameter in block.named_parameters():
        close(parameter.grad, w[name].grad, f"the gradient of {name}")
