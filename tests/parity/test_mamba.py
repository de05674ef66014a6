"""`mamba` computes what transformers' MambaMixer computes: outputs, every gradient, decoding.

The scan below it is compared with the paper's recurrence, written out in float64 with loops.
"""

import pytest
import torch

from blocks.sequence.mamba import Mamba
from doge_lab.ops import selective_scan
from doge_lab.ops.selective_scan import chunked, reference
from doge_lab.testing import check_same_forms
from parity.compare import assert_close, assert_same_decoding, assert_same_forward_and_backward

BLOCK = "sequence/mamba"
ORACLE = "transformers' MambaMixer, and the recurrence of the paper, written out in float64"

SIZES = [  # d_model, tokens, options
    (32, 11, {}),
    (24, 1, {"d_state": 5, "expand": 1.5}),
    (16, 40, {"d_state": 3, "kernel_size": 2, "dt_rank": 6}),
]
NAMES = {
    "in_proj.weight": "in_proj.weight",
    "conv.weight": "conv1d.weight",
    "conv.bias": "conv1d.bias",
    "x_proj.weight": "x_proj.weight",
    "dt_proj.weight": "dt_proj.weight",
    "dt_proj.bias": "dt_proj.bias",
    "a_log": "A_log",
    "skip": "D",
    "out.weight": "out_proj.weight",
}


def like_ours(name, tensor):
    """Theirs in our layout: a convolution's channels last, and a channel's state first."""
    if name == "conv.weight":
        return tensor.squeeze(1).T
    return tensor.T if name == "a_log" else tensor


def pair(d_model, options, seed):
    """Our block and theirs with the same random weights."""
    from transformers.models.mamba import modeling_mamba as peer

    torch.manual_seed(seed)
    ours = Mamba(d_model, **options)
    config = peer.MambaConfig(
        hidden_size=d_model,
        state_size=ours.config.d_state,
        conv_kernel=ours.config.kernel_size,
        time_step_rank=ours.dt_rank,
        num_hidden_layers=1,
    )
    config.intermediate_size = ours.d_inner
    theirs = peer.MambaMixer(config, 0)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
            like_ours(name, theirs.get_parameter(NAMES[name])).copy_(parameter)
    assert {name for name, _ in theirs.named_parameters()} == set(NAMES.values())
    return ours, theirs, config


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("d_model", "tokens", "options"), SIZES)
def test_forward_and_every_gradient(d_model, tokens, options, seed):
    ours, theirs, _ = pair(d_model, options, seed)
    assert_same_forward_and_backward(lambda x: ours(x)[0], theirs, (2, tokens, d_model), least=1e-30)
    for name, parameter in ours.named_parameters():
        gradient = like_ours(name, theirs.get_parameter(NAMES[name]).grad)
        assert_close(parameter.grad, gradient, f"the gradient of {name}", least=1e-30)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("d_model", "tokens", "options"), SIZES)
def test_decoding_after_a_prompt(d_model, tokens, options, seed):
    ours, theirs, config = pair(d_model, options, seed)
    x = torch.randn(2, tokens + 7, d_model)
    cache, their_cache = assert_same_decoding(
        ours,
        lambda part, cache, seen: theirs(part, cache_params=cache),
        x,
        [tokens] + [1] * 7,
        config,
        least=1e-30,
    )
    assert_close(cache["state"].mT, their_cache.layers[0].recurrent_states[0], "the state", least=1e-30)


def by_the_paper(x, delta, a, b, c, state):
    """Gu & Dao 2023, algorithm 2: one row and channel at a time, the state after the last token too."""
    outputs, states = torch.zeros_like(x), torch.zeros_like(state)
    for row in range(x.shape[0]):
        for channel in range(x.shape[2]):
            h = state[row, :, channel]
            for t in range(x.shape[1]):
                step = delta[row, t, channel]
                h = torch.exp(step * a[:, channel]) * h + step * b[row, t] * x[row, t, channel]
                outputs[row, t, channel] = c[row, t] @ h
            states[row, :, channel] = h
    return outputs, states


@pytest.mark.parametrize("recur", [chunked, reference])
@pytest.mark.parametrize("longest_step", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize(("tokens", "stretch"), [(1, 9), (9, 9), (23, 9), (8, 4)])
def test_the_scan_and_every_gradient(recur, longest_step, tokens, stretch, monkeypatch):
    monkeypatch.setattr(selective_scan, "_CPU_NUMBERS", stretch * 2 * 3 * 4)
    torch.manual_seed(tokens)
    x, delta = torch.randn(2, tokens, 3), longest_step * torch.rand(2, tokens, 3)
    a, b, c = -3 * torch.rand(4, 3), torch.randn(2, tokens, 4), torch.randn(2, tokens, 4)
    inputs = [tensor.requires_grad_() for tensor in (x, delta, a, b, c, torch.randn(2, 4, 3))]
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    results, exact = recur(*inputs), by_the_paper(*exact_inputs)
    directions = [torch.randn_like(result) for result in results]
    gradients = torch.autograd.grad(results, inputs, directions)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, [direction.double() for direction in directions])
    names = ("the output", "the state", *(f"the gradient of {name}" for name in ("x", "delta", "a", "b", "c", "state")))
    for name, ours, expected in zip(names, (*results, *gradients), (*exact, *exact_gradients), strict=True):
        assert_close(ours, expected, name, least=1e-30)


def test_the_step_size_starts_where_the_paper_starts_it():
    steps = torch.nn.functional.softplus(Mamba(512).dt_proj.bias)
    assert 0.001 <= steps.min() < 0.0015
    assert 0.07 < steps.max() <= 0.1001


def test_stretches_are_the_recurrence(monkeypatch):
    monkeypatch.setattr(selective_scan, "_CPU_NUMBERS", 1 << 14)
    check_same_forms(Mamba)
