"""`mamba2` computes what transformers' Mamba2Mixer computes: outputs, every gradient, decoding."""

import pytest
import torch

from blocks.sequence.mamba2 import Mamba2
from doge_lab.ops.dispatch import REFERENCE, using
from parity.compare import assert_close, assert_same_decoding, assert_same_forward_and_backward

BLOCK = "sequence/mamba2"
ORACLE = "transformers' Mamba2Mixer"

SIZES = [  # d_model, tokens, options
    (32, 11, {}),
    (24, 1, {"n_heads": 6, "n_groups": 3, "d_state": 5, "expand": 1.0}),
    (16, 75, {"n_heads": 4, "n_groups": 2, "d_state": 3, "kernel_size": 2}),
    (16, 19, {"n_heads": 4, "n_groups": 4, "d_state": 7}),
]
NAMES = {
    "in_proj.weight": "in_proj.weight",
    "conv.weight": "conv1d.weight",
    "conv.bias": "conv1d.bias",
    "dt_bias": "dt_bias",
    "a_log": "A_log",
    "skip": "D",
    "norm_scale": "norm.weight",
    "out.weight": "out_proj.weight",
}
GATES = {"weak": -4.0, "ordinary": 0.0, "strong": 4.0}  # added to the bias of the step size


def like_ours(name, tensor):
    """Theirs in our layout: a convolution's channels last."""
    return tensor.squeeze(1).T if name == "conv.weight" else tensor


def pair(d_model, options, gates="ordinary", seed=0):
    """Our block and theirs with the same random weights."""
    from transformers.models.mamba2 import modeling_mamba2 as peer

    torch.manual_seed(seed)
    ours = Mamba2(d_model, **options)
    config = peer.Mamba2Config(
        hidden_size=d_model,
        expand=int(ours.config.expand),
        num_heads=ours.config.n_heads,
        head_dim=ours.head_dim,
        n_groups=ours.config.n_groups,
        state_size=ours.config.d_state,
        conv_kernel=ours.config.kernel_size,
        chunk_size=8,
        num_hidden_layers=1,
    )
    theirs = peer.Mamba2Mixer(config, 0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        ours.dt_bias.add_(GATES[gates])
        for name, parameter in ours.named_parameters():
            like_ours(name, theirs.get_parameter(NAMES[name])).copy_(parameter)
    assert {name for name, _ in theirs.named_parameters()} == set(NAMES.values())
    return ours, theirs, config


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("d_model", "tokens", "options"), SIZES)
def test_forward_and_every_gradient(d_model, tokens, options, gates):
    ours, theirs, _ = pair(d_model, options, gates)
    assert_same_forward_and_backward(lambda x: ours(x)[0], theirs, (2, tokens, d_model), least=1e-30)
    for name, parameter in ours.named_parameters():
        gradient = like_ours(name, theirs.get_parameter(NAMES[name]).grad)
        assert_close(
            parameter.grad, gradient, f"the gradient of {name}", tolerance=3e-5, least=1e-30
        )  # theirs adds up decays in float32


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("d_model", "tokens", "options"), SIZES)
def test_decoding_after_a_prompt(d_model, tokens, options, gates):
    ours, theirs, config = pair(d_model, options, gates, seed=1)
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


@pytest.mark.parametrize("gates", GATES)
def test_gradients_of_chunks_are_those_of_the_recurrence(gates):
    ours, _, _ = pair(32, {"n_groups": 2}, gates)
    x, direction = torch.randn(2, 3, 150, 32)
    gradients = []
    for form in ("chunked", REFERENCE):
        with using(form):
            y, _ = ours(x)
        gradients.append(torch.autograd.grad((y * direction).sum(), list(ours.parameters())))
    for (name, _), chunks, recurrence in zip(ours.named_parameters(), *gradients, strict=True):
        assert_close(chunks, recurrence, f"the gradient of {name}", least=1e-30)
