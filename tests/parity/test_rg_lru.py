"""`rg_lru` computes what transformers' RecurrentGemma block computes: outputs, every gradient, decoding.

Theirs runs in float64, because it takes 1 - a² as it stands, which in float32 leaves few digits where a is near 1. It
leaves a row's first token unscaled (position 0); positions that start at 1 give what the paper writes. The recurrence
below it is compared with loops in float64.
"""

import pytest
import torch

from blocks.sequence.rg_lru import RgLru
from doge_lab.ops import elementwise_recurrence
from doge_lab.ops.elementwise_recurrence import chunked, reference
from parity.compare import assert_close

BLOCK = "sequence/rg_lru"
ORACLE = "transformers' RecurrentGemmaRecurrentBlock"

SIZES = [  # d_model, tokens, options
    (32, 11, {}),
    (32, 17, {"first_token": "whole"}),
    (24, 40, {"n_heads": 3, "kernel_size": 2}),
    (16, 6, {"n_heads": 1, "first_token": "whole"}),
]
WIDTHS = [*SIZES, (24, 9, {"expand": 1.5, "n_heads": 2})]
GATES = {"weak": -4.0, "ordinary": 0.0, "strong": 4.0}  # added to λ


def in_our_layout(theirs, kind):
    """Their parameters, or the gradients of these, under our names."""
    t = {name: getattr(tensor, kind) for name, tensor in theirs.named_parameters()}
    return {
        "in_proj.weight": torch.cat([t["linear_y.weight"], t["linear_x.weight"]]),
        "in_proj.bias": torch.cat([t["linear_y.bias"], t["linear_x.bias"]]),
        "conv.weight": t["conv_1d.weight"].squeeze(1).T,
        "conv.bias": t["conv_1d.bias"],
        "gate_weight": torch.cat([t["rg_lru.input_gate_weight"], t["rg_lru.recurrent_gate_weight"]], dim=-1),
        "gate_bias": torch.cat([t["rg_lru.input_gate_bias"], t["rg_lru.recurrent_gate_bias"]], dim=-1),
        "decay": t["rg_lru.recurrent_param"],
        "out.weight": t["linear_out.weight"],
        "out.bias": t["linear_out.bias"],
    }


def pair(d_model, options, gates="ordinary", seed=0):
    """Theirs with random weights in float64, and our block with the same."""
    from transformers.models.recurrent_gemma import modeling_recurrent_gemma as peer

    torch.manual_seed(seed)
    ours = RgLru(d_model, **options)
    config = peer.RecurrentGemmaConfig(
        hidden_size=d_model,
        lru_width=ours.d_inner,
        num_attention_heads=ours.config.n_heads,
        conv1d_width=ours.config.kernel_size,
        num_hidden_layers=1,
    )
    theirs = peer.RecurrentGemmaRecurrentBlock(config, 0).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.dim() > 1 else 0.2))
        theirs.rg_lru.recurrent_param.add_(GATES[gates])
    ours.load_state_dict(in_our_layout(theirs, "data"))
    return ours, theirs


def run(theirs, x, seen, options, use_cache):
    first = 0 if options.get("first_token") == "whole" else 1
    positions = torch.arange(seen + first, seen + first + x.shape[1])[None].expand(len(x), -1)
    return theirs(x, positions, None, use_cache=use_cache)[0]


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("d_model", "tokens", "options"), WIDTHS)
def test_forward_and_every_gradient(d_model, tokens, options, gates):
    ours, theirs = pair(d_model, options, gates)
    x = torch.randn(2, tokens, d_model, requires_grad=True)
    x_theirs = x.detach().double().requires_grad_()
    direction = torch.randn(2, tokens, d_model)
    y, expected = ours(x)[0], run(theirs, x_theirs, 0, options, use_cache=False)
    assert_close(y, expected, "the output", least=1e-30)
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    assert_close(x.grad, x_theirs.grad, "the input's gradient", least=1e-30)
    gradients = in_our_layout(theirs, "grad")
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], f"the gradient of {name}", least=1e-30)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("d_model", "tokens", "options"), SIZES)
def test_decoding_after_a_prompt(d_model, tokens, options, gates):
    ours, theirs = pair(d_model, options, gates, seed=1)
    x = torch.randn(2, tokens + 7, d_model)
    cache = ours.init_cache(batch=2, capacity=tokens + 7)
    with torch.no_grad():
        for part in x.split([tokens] + [1] * 7, dim=1):
            expected = run(theirs, part.double(), cache.position, options, use_cache=True)
            y, _ = ours(part, None, cache)
            cache.advance(part.shape[1])
            assert_close(y, expected, f"the output at {cache.position} tokens", least=1e-30)
    assert_close(cache["state"], theirs.rg_lru.recurrent_states, "the state", least=1e-30)


def by_loops(decay, x, state):
    states = []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + x[:, t]
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("few_numbers", [0, 1 << 12], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("power", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("tokens", [1, 2, 3, 19, 64, 101])
def test_the_recurrence_and_every_gradient(tokens, power, few_numbers, monkeypatch):
    monkeypatch.setattr(elementwise_recurrence, "_FEW_NUMBERS", few_numbers)
    torch.manual_seed(tokens)
    decay, x, state = torch.rand(2, tokens, 3, 5).pow(power), torch.randn(2, tokens, 3, 5), torch.randn(2, 3, 5)
    direction, results = torch.randn_like(x), []
    for form, dtype in ((by_loops, torch.float64), (chunked, torch.float32), (reference, torch.float32)):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (decay, x, state)]
        states = form(*inputs)
        results.append([states, *torch.autograd.grad(states, inputs, direction.to(dtype))])
    for result in results[1:]:
        names = ("the states", "the gradient of the decay", "of x", "of the first state")
        for name, ours, expected in zip(names, result, results[0], strict=True):
            assert_close(ours, expected, name, least=1e-30)


def test_decays_start_where_the_paper_starts_them():
    decay = torch.exp(-8 * torch.nn.functional.softplus(RgLru(2048).decay))
    assert 0.9 <= decay.min() < 0.901
    assert 0.998 < decay.max() <= 0.99901


def test_shut_gates_have_finite_gradients():
    block = RgLru(32)
    with torch.no_grad():
        block.gate_bias.sub_(1e4)
    x = torch.randn(2, 9, 32, requires_grad=True)
    block(x)[0].sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())
