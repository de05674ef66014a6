"""Determinism is chosen for a run alone, and what has none is told once. The device's type decides: no GPU is used."""

import warnings

import pytest
import torch

from doge_lab.determinism import deterministic
from doge_lab.layers.norm import RMSNorm

NOISE = "{} does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'"


def test_a_run_on_a_gpu_switches_it_on_and_back_off():
    with deterministic(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_is_switched_back_after_an_error_too():
    with pytest.raises(RuntimeError), deterministic(torch.device("cuda")):
        raise RuntimeError
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_nothing_is_switched():
    with deterministic(torch.device("cpu")) as found:
        assert not torch.are_deterministic_algorithms_enabled()
    assert found == []


@pytest.mark.parametrize("run", [1, 2])
def test_what_is_not_deterministic_is_named_once_in_every_run(run):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with deterministic(torch.device("cuda")) as found:
            for _ in range(3):
                warnings.warn(NOISE.format("cumsum_cuda_kernel"), stacklevel=1)
                warnings.warn(NOISE.format("index_put"), stacklevel=1)
                warnings.warn("Flash Attention defaults to a non-deterministic algorithm. To ...", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert found == ["cumsum_cuda_kernel", "index_put", "Flash Attention"]
    assert [str(each.message) for each in told] == ["something else"]


def test_the_norm_keeps_its_weights_precision_and_gives_the_inputs_type():
    norm, x = RMSNorm(8), torch.randn(3, 8).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x.float()).bfloat16())
