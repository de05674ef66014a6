"""What a check is given: one block class with options, built small, and the few ways of running it.

Shape letters: B batch row, T token, D d_model.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from doge_lab.block import Block, Kind, SequenceBlock
from doge_lab.cache import LayerCache, PerToken
from doge_lab.determinism import seed_torch
from doge_lab.model import BlockRef, CausalLM, LayerConfig, ModelConfig

Mode = Literal["quick", "full"]

TOLERANCE = 1e-5
"""Largest difference allowed in float32, relative to the largest output."""
SPLIT_TOLERANCE = 1e-4
"""The same, where the order of the arithmetic changes: a recurrence against its parallel form."""
NOTICEABLE = 1e-6
"""A relative change above this is a change."""


class Skipped(Exception):
    """A check that has nothing to look at; the message says why."""


@dataclass(frozen=True)
class Check:
    """One promise of the contract. `kind` None means both kinds; `mode` is the least thorough mode that runs it."""

    name: str
    promise: str
    run: Callable[["Case"], None]
    kind: Kind | None = None
    mode: Mode = "quick"


def check(kind: Kind | None = None, mode: Mode = "quick") -> Callable[[Callable[["Case"], None]], Check]:
    """Make a check of a function: its name is the check's, the first line of its docstring is the promise."""

    def make(function: Callable[[Case], None]) -> Check:
        promise = (function.__doc__ or "").split("\n")[0].rstrip(".")
        return Check(function.__name__, promise, function, kind, mode)

    return make


@dataclass(frozen=True)
class Case:
    """A block class with options, its place in a model, and how thoroughly to look at it."""

    block: type[Block]
    options: Mapping[str, Any] = field(default_factory=dict)
    d_model: int = 32
    full: bool = False
    layer_idx: int = 0
    n_layers: int = 2

    def at(self, layer_idx: int, n_layers: int) -> "Case":
        """The same block at another place."""
        return dataclasses.replace(self, layer_idx=layer_idx, n_layers=n_layers)

    @property
    def is_sequence(self) -> bool:
        return issubclass(self.block, SequenceBlock)

    def build(self, seed: int = 0) -> Any:
        """A fresh block in evaluation mode; the layers below its place are built first, as a model builds them."""
        seed_torch(seed)
        *below, block = [
            self.block(self.d_model, layer_idx=layer_idx, n_layers=self.n_layers, **self.options).eval()
            for layer_idx in range(self.layer_idx + 1)
        ]
        self._below[block] = below
        return block

    @functools.cached_property
    def _below(self) -> MutableMapping[Block, list[Block]]:
        # a layer may use what a layer below it owns, which therefore has to live as long
        return weakref.WeakKeyDictionary()

    def stack(self, block: Block) -> list[Block]:
        """The layers below `block`, and `block`."""
        return [*self._below[block], block]

    def state(self, block: Block) -> dict[str, Tensor]:
        """What `block` and the layers below it save, by layer and name: copies."""
        return {
            f"{index}.{name}": tensor.detach().clone()
            for index, layer in enumerate(self.stack(block))
            for name, tensor in layer.state_dict().items()
        }

    def load(self, block: Block, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned for another block of this case."""
        for index, layer in enumerate(self.stack(block)):
            start = f"{index}."
            layer.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})

    def trained(self) -> Any:
        """A block after a few steps of training: what starts at zero can no longer hide a fault."""
        block = self.build()
        if self._trained_state:
            self.load(block, self._trained_state)
        return block

    def moved(self, seed: int) -> Any:
        """A trained block whose gates, biases and scales have moved far, as in a long training: anything may open."""
        block, generator = self.trained(), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in block.parameters():
                far = 2.0 if parameter.numel() <= 4 * self.d_model else 0.5 * float(parameter.std())
                parameter += far * torch.randn(parameter.shape, generator=generator)
        return block

    @functools.cached_property
    def _trained_state(self) -> dict[str, Tensor]:
        # A block that cannot be trained, saved or loaded fails the checks of that; the others see it untrained.
        try:
            block = self.build()
            fit(self, block, steps=3)
            state = self.state(block)
            self.load(self.build(), state)
        except Exception:
            return {}
        return state if all(value.isfinite().all() for value in state.values()) else {}

    def input(self, batch: int = 3, length: int = 17, seed: int = 1) -> Tensor:
        """Normal numbers [B, T, D] that depend on the seed alone."""
        return torch.randn(batch, length, self.d_model, generator=torch.Generator().manual_seed(seed))

    @functools.cached_property
    def widest(self) -> torch.dtype:
        """float64 where the block computes in it, which nothing demands; else float32."""
        x = self.input(2, 80).double()
        try:
            with torch.no_grad():
                block = self.build().double()
                y = output(block, x)
                if self.is_sequence:
                    y = y + in_chunks(block, x, [50, 1, 29])
        except Exception:
            return torch.float32
        return torch.float64 if y.dtype == torch.float64 else torch.float32

    @functools.cached_property
    def windows(self) -> list[int]:
        """The windows that the block's cache declares, smallest first."""
        block = self.build()
        if not isinstance(block, SequenceBlock):
            return []
        entries = block.cache_spec().values()
        return sorted({entry.window for entry in entries if isinstance(entry, PerToken) and entry.window is not None})

    @property
    def long_length(self) -> int:
        """Enough tokens to cross every window within reach, and a few chunks of a chunked algorithm."""
        return max(40, *(min(window, self.reach) + 9 for window in self.windows), 0)

    @property
    def reach(self) -> int:
        """The longest window that is crossed; a longer one is looked at up to here."""
        return 4096 if self.full else 1024

    def model(self, seed: int = 0) -> CausalLM:
        """Two layers of this block and nothing else, assembled and initialised as a user's model is."""
        none = {kind: BlockRef.parse(kind, "none") for kind in ("sequence", "state")}
        ref = _DirectRef(self.block.kind, self.block.__name__, self.build().config, self.block, self.options)
        layer = LayerConfig(repeat=2, **{**none, self.block.kind: ref})
        return CausalLM.build(ModelConfig(vocab_size=11, d_model=self.d_model, layers=(layer,)), seed=seed)


@dataclass(frozen=True)
class _DirectRef(BlockRef):
    """A reference that holds its class, so that a block without a name can be assembled too."""

    block: type[Block]
    given: Mapping[str, Any]

    def build(self, d_model: int, *, layer_idx: int, n_layers: int) -> Block:
        return self.block(d_model, layer_idx=layer_idx, n_layers=n_layers, **self.given)


def output(block: Any, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
    """`block`'s output [B, T, D], whatever its kind. Advances a given cache, as the model does.

    What a block does to its input or to the position stays here: one check looks at that, the others need not.
    """
    if not isinstance(block, SequenceBlock):
        return block(x.clone())
    seen = 0 if cache is None else cache.position
    y, _ = block(x.clone(), attention_mask, cache)
    if cache is not None:
        cache.position = seen + x.shape[1]
    return y


def in_chunks(
    block: SequenceBlock,
    x: Tensor,
    chunks: Sequence[int],
    attention_mask: Tensor | None = None,
    *,
    room: int = 0,
    cache: LayerCache | None = None,
) -> Tensor:
    """The output of `x` [B, T, D] given in several calls with one cache that has `room` tokens to spare."""
    if cache is None:
        cache = block.init_cache(batch=len(x), capacity=x.shape[1] + room, dtype=x.dtype, device=x.device)
    outputs = []
    for chunk in x.split(list(chunks), dim=1):
        end = cache.position + chunk.shape[1]
        outputs.append(output(block, chunk, None if attention_mask is None else attention_mask[:, :end], cache))
    return torch.cat(outputs, dim=1)


def fit(
    case: Case,
    block: Any,
    steps: int,
    *,
    lr: float = 1e-2,
    auxiliary: bool = True,
    inspect: Callable[[], None] | None = None,
    first: int = 0,
) -> None:
    """Train on random targets with AdamW without decay; `inspect` sees the gradients before each step.

    `auxiliary` adds what a routed block reports to the loss. Numbers depend on the step, counted from `first`.
    """
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    if not parameters:
        return
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    block.train()
    for step in range(first, first + steps):
        optimizer.zero_grad()
        seed_torch(step)
        x, target = case.input(8, 32, seed=100 + step), case.input(8, 32, seed=200 + step)
        training_loss(block, x, target, auxiliary=auxiliary).backward()
        if inspect is not None:
            inspect()
        optimizer.step()
        block.after_step()
    optimizer.zero_grad()
    block.eval()


def training_loss(block: Any, x: Tensor, target: Tensor, *, auxiliary: bool = True) -> Tensor:
    """Squared error, plus what a routed block adds to the loss."""
    loss = F.mse_loss(output(block, x), target)
    return loss + block.router_stats.loss if auxiliary and block.router_stats is not None else loss


def close(
    actual: Tensor, expected: Tensor, promise: str, tolerance: float = TOLERANCE, *, whole: Tensor | None = None
) -> None:
    """Raise `AssertionError` unless the tensors agree, relative to the largest element of `whole` (or `expected`)."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{promise}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    difference = relative_difference(actual, expected, whole)
    if not difference <= tolerance:
        raise AssertionError(f"{promise}: off by {difference:.2g} of the largest output (allowed: {tolerance:g})")


def relative_difference(actual: Tensor, expected: Tensor, whole: Tensor | None = None) -> float:
    """Largest difference over the largest element of `whole` (or `expected`); NaN when either holds a NaN."""
    if not expected.numel():
        return 0.0
    largest = (expected if whole is None else whole).detach().abs().max().item()
    return float((actual.detach().double() - expected.detach().double()).abs().max() / (largest or 1.0))


def require(condition: object, message: str) -> None:
    """`assert` that also works under `python -O`."""
    if not condition:
        raise AssertionError(message)
