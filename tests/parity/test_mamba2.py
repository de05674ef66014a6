"""`mamba2` computes what transformers' Mamba2Mixer computes: outputs, every gradient, decoding."""

import pytest
import torch

from blocks.sequence.mamba2 import Mamba2
from doge_lab.testing import check_same_function
from parity.compare import assert_close, assert_same_decoding, assert_same_forward_and_backward

BLOCK = "sequence/mamba2"
ORACLE = "transformers' Mamba2Mixer"

SIZES = [  # d_model, tokens, options
    (32, 11, {}),
    (24, 1, {"n_heads": 6, "n_groups": 3, "d_state": 5, "expand": 1.0}),
    (16, 75, {"n_heads": 4, "n_groups": 2, "d_state": 3, "kernel_size": 2}),
    (16, 19, {"n_heads": 4, "n_groups": 4, "d_state": 7, "impl": "reference"}),
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


@pytest.mark.parametrize("options", [{}, {"n_groups": 2, "n_heads": 8}])
def test_chunks_are_the_recurrence(options):
    check_same_function(Mamba2, {"impl": "reference", **options}, options, lengths=(1, 2, 17, 65, 150))


@pytest.mark.parametrize("gates", GATES)
def test_gradients_of_chunks_are_those_of_the_recurrence(gates):
    ours, _, _ = pair(32, {"n_groups": 2}, gates)
    reference = Mamba2(32, n_groups=2, impl="reference")
    reference.load_state_dict(ours.state_dict())
    x, direction = torch.randn(2, 3, 150, 32)
    for block in (ours, reference):
        (block(x)[0] * direction).sum().backward()
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, reference.get_parameter(name).grad, f"the gradient of {name}", least=1e-30)


def test_step_sizes_and_decays_start_where_the_paper_starts_them():
    block = Mamba2(512, n_heads=256)
    step = torch.nn.functional.softplus(block.dt_bias)
    rate = block.a_log.exp()
    assert 0.001 <= step.min() < 0.0015
    assert 0.07 < step.max() <= 0.1001
    assert 1 <= rate.min() < 1.5
    assert 15 < rate.max() <= 16.001
