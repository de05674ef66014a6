"""Blocks that fail in a single call, in their options, or in what they declare."""

from typing import Any

import torch
from pydantic import PositiveInt, field_validator

from blocks.sequence.attention import Attention
from blocks.state.mlp import MLP
from doge_lab.errors import UserError


class AlwaysFloat32(MLP):
    """Returns float32 whatever it is given."""

    def forward(self, x):
        return super().forward(x).float()


class WrongShape(MLP):
    """Drops the last token of longer inputs."""

    def forward(self, x):
        return super().forward(x)[:, : max(1, x.shape[1] - 1)]


class LosesTheCache(Attention):
    """Forgets to return the cache."""

    def forward(self, x, attention_mask=None, cache=None):
        return super().forward(x, attention_mask, cache)[0], None


class WritesToItsInput(Attention):
    """Changes its input in place."""

    def forward(self, x, attention_mask=None, cache=None):
        if not x.requires_grad:
            x.mul_(1.0625)
            return super().forward(x / 1.0625, attention_mask, cache)
        return super().forward(x, attention_mask, cache)


class FailsUnderAutocast(MLP):
    """Multiplies matrices of two types when the context changes one of them."""

    def forward(self, x):
        y = super().forward(x)
        return torch.zeros_like(x).index_add(1, torch.arange(x.shape[1]), y)


class NormOfZero(MLP):
    """Divides by a length that may be zero."""

    def forward(self, x):
        return super().forward(x / x.norm(dim=-1, keepdim=True))


class GradientOfRoot(MLP):
    """Takes a square root whose slope at zero is infinite."""

    def forward(self, x):
        return super().forward(x * x.square().sum(dim=-1, keepdim=True).sqrt())


class ReadsNumbersBack(MLP):
    """Decides in Python what depends on data, which breaks the graph."""

    def forward(self, x):
        return super().forward(x) if x.sum().item() < 1e9 else x


class ForgetsInJSON(MLP):
    """Holds an option that changes each time it is read."""

    class Config(MLP.Config):
        repeats: PositiveInt = 1
        """How often."""

        @field_validator("repeats")
        @classmethod
        def _one_more(cls, value):
            return value + 1


class NotJSON(MLP):
    """Holds an option that no file can."""

    class Config(MLP.Config):
        function: Any = torch.relu
        """A function, not its name."""


class DividesByItsOption(MLP):
    """Takes any whole number and divides by it."""

    class Config(MLP.Config):
        groups: int = 2
        """Groups of channels."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.group_size = d_model // self.config.groups


class FailsLate(MLP):
    """Accepts a width that the first call chokes on."""

    class Config(MLP.Config):
        groups: int = 2
        """Groups of channels."""

    def forward(self, x):
        return super().forward(x).unflatten(-1, (self.config.groups, -1)).flatten(-2)


class VagueMessage(MLP):
    """Refuses a number without saying which."""

    class Config(MLP.Config):
        groups: int = 2
        """Groups of channels."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        if self.config.groups < 1:
            raise UserError("this number is too small")


class TakesAnything(MLP):
    """Swallows options that it does not have."""

    def __init__(self, d_model, **options):
        known = {name: value for name, value in options.items() if name in ("layer_idx", "n_layers", "d_hidden")}
        super().__init__(d_model, **known)


class FaultThatIsNone(MLP):
    """Declares a fault that it does not have."""

    def known_faults(self):
        return {"flops": "it counts nothing"}


class FaultNobodyChecks(MLP):
    """Declares a fault by a name that no check has."""

    def known_faults(self):
        return {"flop": "it counts nothing"}


class DeclaredFault(MLP):
    """A published form that cannot keep a promise, and says so."""

    def flops_per_token(self, context):
        return 0

    def known_faults(self):
        return {"flops": "as published, it counts nothing"}


class CannotBeBuilt(MLP):
    """Fails where it is constructed."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        raise KeyError("something")


class WritesWhereNothingIsRecorded(MLP):
    """Changes its input in place in inference mode alone."""

    def forward(self, x):
        y = super().forward(x)
        return x.copy_(y) if torch.is_inference_mode_enabled() else y
