"""A Kolmogorov-Arnold network of two layers: a learned function of one number on every edge, sums at the nodes.

    y_o = Σ_i φ_oi(x_i)        φ_oi(x) = w_oi act(x) + Σ_g c_oig B((x - t_g) / h)

    bspline   B(u) = Σ_j (-1)^j C(p + 1, j) max(0, (p + 1)/2 - j - |u|)^p / p!        0 <= j <= (p + 1)/2, order p
    rbf       B(u) = exp(-u²)

The centres t_g are evenly spaced, h apart. B-splines cover [-grid_range, grid_range] as published, (n_basis - order)
intervals of it with `order` functions reaching over the ends; radial functions have their first and last centre there.
Beyond the grid the functions fade out and w act(x) remains. The B-spline above is the cardinal one with its centre
at 0; the published recursion over knots gives the same numbers. The grid stays where it is: it is not moved
towards the inputs during training.

Source: Liu et al. 2024, https://arxiv.org/abs/2404.19756 ; radial functions: Li 2024,
https://arxiv.org/abs/2405.06721 ; cardinal B-splines: Schoenberg 1946, https://doi.org/10.1090/qam/15914

Shape letters: N token, I input, O output, G basis function.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, StateBlock
from doge_lab.errors import UserError
from doge_lab.layers.activations import Activation, activation
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.precision import at_least_float32

_SPLINE_SCALE = 0.1
"""Splines start as noise this much smaller than a dense layer's weights."""


class KAN(StateBlock):
    """Two layers of learned functions on edges, with as many parameters as an MLP when its width is left out."""

    width_option = "d_hidden"
    search_space: ClassVar[Mapping[str, Any]] = {
        "n_basis": {"int": [4, 12]},
        "basis": {"choice": ["bspline", "rbf"]},
        "grid_range": {"float": [1.0, 4.0], "log": True},
    }

    class Config(BlockConfig):
        d_hidden: PositiveInt | None = None
        """Hidden width; 4 * d_model / (n_basis + 1) when left out."""
        n_basis: int = Field(default=8, ge=2)
        """Basis functions of one edge; above `order` for B-splines."""
        basis: Literal["bspline", "rbf"] = "bspline"
        """The basis functions: B-splines, or Gaussians, which cost less."""
        order: PositiveInt = Field(default=3, le=5)
        """Degree of the B-splines; `rbf` has none."""
        grid_range: Annotated[float, Field(ge=1e-3)] = 2.0
        """The grid reaches from -grid_range to grid_range."""
        base: Activation = "silu"
        """The function on every edge beside the learned one."""

        @model_validator(mode="after")
        def _has_intervals(self) -> "KAN.Config":
            if self.basis == "bspline" and self.n_basis <= self.order:
                raise UserError(
                    f"n_basis={self.n_basis} must be above order={self.order}: B-splines cover n_basis - order "
                    f"intervals; say n_basis={self.order + 1}, a lower order, or basis: rbf",
                    "n_basis",
                )
            return self

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        d_hidden = self.config.d_hidden or max(1, round(4 * d_model / (self.config.n_basis + 1)))
        self.up = _KANLayer(d_model, d_hidden, self.config)
        self.down = _KANLayer(d_hidden, d_model, self.config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.up.init()
        self.down.init(self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))

    def flops_per_token(self, context: int) -> int:
        return 2 * self.num_params()


class _KANLayer(nn.Module):
    """All edges at once: the basis functions of every input, then one matrix. Its owner initialises it."""

    def __init__(self, d_in: int, d_out: int, config: KAN.Config) -> None:
        super().__init__()
        self.config = config
        self.act = activation(config.base)
        self.base = nn.Linear(d_in, d_out, bias=False)
        self.edges = nn.Linear(d_in * config.n_basis, d_out, bias=False)

    def init(self, scale: float = 1.0) -> None:
        init_linear(self.base, scale)
        init_weight(self.edges.weight, self.base.in_features, _SPLINE_SCALE * scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.act(x)) + self.edges(self._basis(at_least_float32(x)).flatten(-2).to(x.dtype))

    def _basis(self, x: Tensor) -> Tensor:
        """Every basis function of every input: [..., I] -> [..., I, G]."""
        c = self.config
        index = torch.arange(c.n_basis, device=x.device)
        if c.basis == "rbf":
            spacing = 2 * c.grid_range / (c.n_basis - 1)
            return (-((x[..., None] + c.grid_range) / spacing - index).square()).exp()
        spacing = 2 * c.grid_range / (c.n_basis - c.order)
        # the first centre lies (order - 1) / 2 intervals before the grid begins
        return _bspline((x[..., None] + c.grid_range) / spacing - index + (c.order - 1) / 2, c.order)


def _bspline(u: Tensor, order: int) -> Tensor:
    """The cardinal B-spline around 0, a sum of truncated powers of the distance to it."""
    distance = u.abs()
    value = F.relu((order + 1) / 2 - distance).pow(order)
    for j in range(1, order // 2 + 1):
        value = torch.add(
            value, F.relu((order + 1) / 2 - j - distance).pow(order), alpha=(-1) ** j * math.comb(order + 1, j)
        )
    return value / math.factorial(order)
