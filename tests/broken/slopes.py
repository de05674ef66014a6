"""Blocks that hand back a wrong gradient, their input, nothing of their own, or the same for every width."""

from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import nn

from blocks.state.mlp import MLP
from doge_lab.block import StateBlock


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class LyingBackward(MLP):
    """Doubles the gradient of what comes before it."""

    def forward(self, x):
        return super().forward(_Twice.apply(x))


class DetachedInput(MLP):
    """Cuts its input off: nothing below it learns."""

    def forward(self, x):
        return super().forward(x.detach())


class HalfDetachedInput(MLP):
    """Lets a part of the gradient through."""

    def forward(self, x):
        return super().forward(0.5 * x + 0.5 * x.detach())


class HandsOn(StateBlock):
    """Returns its input itself."""

    def reset_parameters(self):
        pass

    def forward(self, x):
        return x

    def flops_per_token(self, context):
        return 0


class Scales(StateBlock):
    """Returns its input, scaled by one learned number."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.factor = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.factor)

    def forward(self, x):
        return x * self.factor

    def flops_per_token(self, context):
        return 0


class IdleWidth(MLP):
    """Names a width that widens nothing."""

    width_option = "width"

    class Config(MLP.Config):
        width: PositiveInt | None = None
        """Nothing."""


class NoSuchWidth(MLP):
    width_option = "d_hiden"


class IdleOption(MLP):
    """Offers an option to a search that changes nothing."""

    search_space: ClassVar = {"temperature": {"float": [0.5, 2.0]}}

    class Config(MLP.Config):
        temperature: float = 1.0
        """Nothing."""


class LyingInFloat32(MLP):
    """Doubles the gradient, in a part that computes in float32 whatever it is given."""

    def forward(self, x):
        return super().forward(_Twice.apply(x.float().tanh()).to(x.dtype))
