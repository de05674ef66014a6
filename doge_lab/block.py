"""The contract that every block signs: what it is given, what it returns, what it declares.

A *sequence block* moves information between tokens and owns a cache (attention, state-space models).
A *state block* transforms each token by itself and owns knowledge (MLP, mixture of experts, memories).
`doge_lab.testing` holds the same contract as executable checks.

Shape letters: B batch row, T new token, D d_model, E expert.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from doge_lab.cache import CacheSpec, LayerCache
from doge_lab.errors import UserError
from doge_lab.strict import Strict, validate

Kind = Literal["sequence", "state"]


class BlockConfig(Strict):
    """The options of one block. Widths shared between blocks (`d_model`) belong to the model."""


@dataclass(frozen=True)
class RouterStats:
    """What a routed block reports of its last forward; the model collects and clears it.

    loss: scalar to add to the training loss, already weighted as the block's options say.
    balance_loss, z_loss: the unweighted scalars behind it, for the record.
    usage: [E], each expert's share of all picks; sums to 1.
    """

    loss: Tensor
    balance_loss: Tensor
    z_loss: Tensor
    usage: Tensor

    @classmethod
    def balanced(cls, weight: float, balance_loss: Callable[[], Tensor], usage: Tensor) -> "RouterStats":
        """With a balance loss alone: computed where it has a weight and gradients are recorded, else it reads 0."""
        zero = usage.new_zeros(())
        balance = balance_loss() if weight and torch.is_grad_enabled() else zero
        return cls(weight * balance, balance.detach(), zero, usage)


@dataclass(frozen=True)
class Routing:
    """What a router chose, with what it chose from: enough to choose again by brute force.

    scores: [N, E], of every expert for every query (each token, or each head of each token).
    chosen: [N, K], the experts that were chosen.
    weights: [N, K], their weights.
    normalisation: how a weight follows from the scores s. softmax_chosen, softmax_all: exp(s) over its sum among the
        chosen, or among all; sigmoid: 1 / (1 + exp(-s)); sigmoid_chosen: that, over its sum among the chosen;
        none: 1.
    selection_bias: [E], added to the scores (sigmoid and sigmoid_chosen: to their sigmoids) for the choice alone.
    scale: what the weights are multiplied by.
    """

    scores: Tensor
    chosen: Tensor
    weights: Tensor
    normalisation: str
    selection_bias: Tensor | None = None
    scale: float = 1.0


class Block(nn.Module, abc.ABC):
    """What sequence blocks and state blocks have in common.

    `d_model` is the width of the stream, `layer_idx` the layer's index, `n_layers` the model's number of layers
    (an initialiser may scale with it), and `options` the fields of the block's own `Config`.
    """

    Config: ClassVar[type[BlockConfig]] = BlockConfig
    kind: ClassVar[Kind]
    width_option: ClassVar[str | None] = None
    """The option that `match:` solves for when asked to make this block larger or smaller."""
    search_space: ClassVar[Mapping[str, Any]] = {}
    """The options worth searching, as holes of a search space: what a bare name in a `choice` brings with it."""
    weight_matrices: ClassVar[tuple[str, ...]] = ()
    """The block's own parameters that weight decay acts on, by name: matrices and tables of weights. Those of its
    `nn.Linear` need no naming; whatever else it holds is left alone, for decay is wrong for rates, gains and biases.
    A module that blocks share names its own in an attribute of the same name."""
    is_none: ClassVar[bool] = False
    """True for the blocks named `none`: the model leaves them out, norm and residual included."""

    def __init__(self, d_model: int, *, layer_idx: int = 0, n_layers: int = 1, **options: Any) -> None:
        super().__init__()
        self.d_model = d_model
        self.layer_idx = layer_idx
        self.n_layers = n_layers
        self.config: Any = validate(self.Config, options)
        self.router_stats: RouterStats | None = None

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Write every parameter and buffer: the model is built on the meta device, so nothing else does."""

    @abc.abstractmethod
    def flops_per_token(self, context: int) -> int:
        """Forward FLOPs of one decoding step that sees `context` tokens, itself included (a multiply-add is 2).

        Products as PyTorch's FLOP counter counts them, and those of `uncounted_flops_per_token`; no elementwise work.
        """

    def uncounted_flops_per_token(self, context: int) -> int:
        """The part of `flops_per_token` that PyTorch's counter cannot see: outer products, fused kernels."""
        return 0

    def active_params(self) -> int:
        """Parameters that one token touches: fewer than `num_params` where a router chooses."""
        return self.num_params()

    def num_params(self) -> int:
        """Numbers that the block holds: its parameters and its buffers, whatever wrote them, each once."""
        return numbers_held(self)

    def known_faults(self) -> Mapping[str, str]:
        """Checks of the contract that this *published* form cannot pass: name of the check -> reason."""
        return {}

    def routing(self, x: Tensor) -> Routing | None:
        """What the block's router chooses for the tokens `x` [B, T, D]; None without a router.

        For the contract's checks, which choose again by brute force; training never calls it.
        """
        return None

    def _nothing(self, x: Tensor) -> Tensor:
        """The output for no tokens, of which a router has nothing to report."""
        self.router_stats = None
        return x.clone()

    def after_step(self) -> None:
        """Called after each optimiser step; a router that balances by bias acts here."""

    @property
    def output_scale(self) -> float:
        """Initial scale of the projection that writes to the stream, so that depth does not add variance.

        GPT-2's rule, 1/sqrt(2 * n_layers) (Radford et al. 2019).
        """
        return float((2 * self.n_layers) ** -0.5)


class SequenceBlock(Block):
    """Moves information between tokens, from the past to the present only."""

    kind = "sequence"

    def __call__(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        """`forward`, which is never asked about nothing: no rows or no tokens give as little, and no memory of it."""
        return super().__call__(x, attention_mask, cache) if x.numel() else (self._nothing(x), cache)

    @abc.abstractmethod
    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        """Mix the tokens `x` [B, T, D]; returns `y` of the same shape, and the cache it was given (None without).

        `attention_mask` [B, tokens seen + T]: nonzero is a real token, zero is padding. A padded row gives at its
        real tokens what the unpadded row gives. With a cache, `x` continues the tokens that the cache has seen,
        and any split of a sequence into calls gives the same output as one call without a cache.
        """

    @abc.abstractmethod
    def cache_spec(self) -> CacheSpec:
        """The memory of one batch row; `{}` for a block that remembers nothing."""

    def init_cache(
        self, *, batch: int, capacity: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> LayerCache:
        """An empty cache for `batch` rows of up to `capacity` tokens; per-token entries are held in `dtype`."""
        return LayerCache(self.cache_spec(), batch=batch, capacity=capacity, dtype=dtype, device=device)


class StateBlock(Block):
    """Transforms each token by itself."""

    kind = "state"

    def __call__(self, x: Tensor) -> Tensor:
        """`forward`, which is never asked about nothing: no rows or no tokens give as little."""
        return super().__call__(x) if x.numel() else self._nothing(x)

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Transform the tokens `x` [B, T, D] one by one; returns the same shape."""


def numbers_held(module: nn.Module) -> int:
    """Numbers in the parameters and buffers of `module`, each tensor once."""
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def require_divisible(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        raise UserError(f"{name}={value} must be divisible by {divisor_name}={divisor}")
