"""minGRU and minLSTM: gated recurrent units whose gates see the token alone, so that they train in parallel.

    h_t = (1 - z_t) ⊙ h_{t-1} + z_t ⊙ c_t        y_t = W_o h_t        h_0 = 0
    gru    z_t = sigmoid(W_z x_t)
    lstm   z_t = i_t / (f_t + i_t)                f_t = sigmoid(W_f x_t), i_t = sigmoid(W_i x_t)
    c_t = W_c x_t, with `candidate: positive` g(W_c x_t), g(u) = u + 1/2 where u >= 0, else sigmoid(u)

The positive candidate is what the paper's logarithmic scan needs, and what it trains. The logarithms themselves are a
way of computing: the states here are scanned as they are, since products of decays below 1 cannot overflow.

Source: Feng et al. 2024, https://arxiv.org/abs/2410.01201

Shape letters: B batch row, T new token, C channel of the state.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.ops.elementwise_recurrence import elementwise_recurrence


class GatedRecurrent(SequenceBlock):
    """The smallest gated recurrence: one number per channel is all that it remembers."""

    class Config(BlockConfig):
        cell: Literal["gru", "lstm"] = "gru"
        """minGRU, with one gate, or minLSTM, with a forget and an input gate that are normalised to sum to 1."""
        expand: PositiveFloat = 1.0
        """Channels of the state, times d_model."""
        candidate: Literal["positive", "linear"] = "positive"
        """What is written: a positive number as in the paper's logarithmic form, or any number as in its plain form."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "cell": {"choice": ["gru", "lstm"]},
        "expand": {"choice": [0.5, 1.0, 2.0, 4.0]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.channels = round(c.expand * d_model)
        if self.channels < 1:
            raise UserError(f"expand={c.expand} of d_model={d_model} leaves no channel; take at least {1 / d_model:g}")
        self.gates = nn.Linear(d_model, self.channels * (2 if c.cell == "lstm" else 1))
        self.candidate = nn.Linear(d_model, self.channels)
        self.out = nn.Linear(self.channels, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.gates)
        init_linear(self.candidate)
        init_linear(self.out, self.output_scale)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        logit, candidate = self._gate_logit(self.gates(x).float()), self.candidate(x).float()  # [B, T, C]
        if self.config.candidate == "positive":
            candidate = F.relu(candidate) + candidate.clamp(max=0).sigmoid()
        decay, written = (-logit).sigmoid(), logit.sigmoid() * candidate
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        if real is not None:  # padding writes nothing and decays nothing
            decay, written = decay.masked_fill(~real, 1.0), written * real
        state = written.new_zeros(len(x), self.channels) if cache is None else cache["state"]
        states = elementwise_recurrence(decay, written, state)
        if cache is not None:
            cache["state"] = states[:, -1]
        return self.out(states.to(x.dtype)), cache

    def _gate_logit(self, gates: Tensor) -> Tensor:
        """The logit of z: for the LSTM i / (f + i) = sigmoid(log i - log f)."""
        if self.config.cell == "gru":
            return gates
        forget, write = F.logsigmoid(gates).chunk(2, dim=-1)
        return write - forget

    def cache_spec(self) -> CacheSpec:
        return {"state": Fixed((self.channels,))}

    def flops_per_token(self, context: int) -> int:
        return 2 * sum(linear.weight.numel() for linear in (self.gates, self.candidate, self.out))
