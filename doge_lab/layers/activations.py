"""Activation functions by name."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2"]


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, https://arxiv.org/abs/2109.08668)."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation, as in GPT-2 (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    return F.gelu(x, approximate="tanh")


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "silu": F.silu,
    "relu": F.relu,
    "relu2": relu2,
}


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    return _FUNCTIONS[name]
