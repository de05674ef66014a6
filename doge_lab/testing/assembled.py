"""A trained model as it is used, and the ways in which the checks of whole models ask it.

Comparisons allow what rounding does. A router or a sparse reader may choose otherwise where two scores nearly tie, and
every later token hears of it; so where two answers differ, the model is asked how far the same answer moves when its
input is moved by as much as rounding moves it, and no more than that is allowed.

Shape letters: B batch row, T token, D d_model, V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from doge_lab.cache import Cache, LayerCache
from doge_lab.determinism import seed_torch
from doge_lab.model import CausalLM
from doge_lab.tasks import Predict

NUDGES = 8
"""Times that the input is moved to learn what rounding does; a tie as near as that is broken by one of them."""
MOST_CALLS = 64
"""Calls in which a sequence is decoded: token by token up to so many tokens, in equal chunks beyond."""


@dataclass(frozen=True)
class Manner:
    """A way of running a model. Differences are relative to the largest logit.

    tolerance: what is allowed where the order of the arithmetic changes. rounding: of one number. share: of the tokens
    that may be off all the same, where rounding is so coarse that routers choose otherwise for a few.
    """

    name: str
    around: Callable[[str], AbstractContextManager[object]]
    training: bool = False
    tolerance: float = 1e-4
    rounding: float = 1e-6
    share: float = 0.0


EVALUATION = Manner("in evaluation", lambda device: torch.no_grad())
TRAINING = Manner("in training", lambda device: nullcontext(), training=True)
INFERENCE = Manner("in inference mode", lambda device: torch.inference_mode())
GRADIENTS = Manner("in evaluation with gradients", lambda device: torch.enable_grad())


MIXED = Manner("under autocast", lambda device: torch.autocast(device, torch.bfloat16), False, 3e-2, 4e-3, 0.05)
MIXED_TRAINING = replace(MIXED, name="in training under autocast", training=True)
MANNERS = (EVALUATION, TRAINING, INFERENCE, GRADIENTS, MIXED, MIXED_TRAINING)


@dataclass(frozen=True)
class Assembled:
    """A trained model with tokens [B, T] of its task; `reloaded` is another with the same saved weights."""

    model: CausalLM
    reloaded: CausalLM
    tokens: Tensor
    seed: int = 0
    _answers: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @cached_property
    def repeating(self) -> Tensor:
        """As many tokens, of two kinds alone: where tokens repeat, ratings tie."""
        rng = torch.Generator().manual_seed(self.seed)
        kinds = self.random(2)
        return kinds[torch.randint(2, self.tokens.shape, generator=rng).to(self.device)]

    def random(self, *shape: int) -> Tensor:
        """Tokens that depend on the shape and the seed alone."""
        rng = torch.Generator().manual_seed(self.seed + 1)
        return torch.randint(self.model.config.vocab_size or 1, shape, generator=rng).to(self.device)

    def answer(self, manner: Manner, tokens: Tensor) -> Tensor:
        """The logits of `tokens` or `repeating`, asked once."""
        key = manner.name, id(tokens)
        if key not in self._answers:
            self._answers[key] = self.logits(manner, tokens)
        return self._answers[key]

    def logits(self, manner: Manner, tokens: Tensor, mask: Tensor | None = None, *, nudge: int | None = None) -> Tensor:
        """[B, T, V]. What is random in training is the same at every call; `nudge` numbers a movement of the input."""
        before, hook = self.model.training, None
        if nudge is not None:
            hook = self.model.embed.register_forward_hook(_moved(manner.rounding, nudge))
        try:
            self.model.train(manner.training)
            if manner.training:
                seed_torch(self.seed)
            with manner.around(self.device.type):
                return self.model(tokens, mask).detach().float()
        finally:
            self.model.train(before)
            self.model.collect_router_stats()
            if hook is not None:
                hook.remove()

    def require_equal(
        self, actual: Tensor, expected: Tensor, promise: str, manner: Manner, around: tuple[Tensor, Tensor | None]
    ) -> None:
        """Raise `AssertionError` unless logits [B, T, V] agree; `around` are the tokens (and mask) of `expected`."""
        off, largest = (actual - expected).abs().amax(-1), float(expected.abs().max()) or 1.0
        if float((~(off <= manner.tolerance * largest)).float().mean()) <= manner.share:
            return
        allowed = torch.full_like(off, manner.tolerance * largest)
        at_rest = self.logits(manner, *around)
        for nudge in range(NUDGES):
            moved = (self.logits(manner, *around, nudge=nudge) - at_rest).abs().amax(-1)
            allowed = torch.maximum(allowed, 4 * moved[: off.shape[0], : off.shape[1]])
        wrong = ~(off <= allowed)
        share = float(wrong.float().mean())
        if share > manner.share:
            worst = float(off.nan_to_num(torch.inf)[wrong].max() / largest)
            raise AssertionError(
                f"{promise} {manner.name}: off by {worst:.2g} of the largest logit at {share:.1%} of the tokens "
                f"(batches of {actual.shape[0]} rows, {actual.shape[1]} tokens)"
            )


def _moved(size: float, seed: int) -> Callable[..., Tensor]:
    def move(_module: object, _args: object, x: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return x * (1 + size * torch.randn(x.shape, generator=rng).to(x))

    return move


def decoded(
    models: Sequence[CausalLM],
    tokens: Tensor,
    chunks: Sequence[int],
    dtype: torch.dtype | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Cache]:
    """Logits [B, T, V] of `tokens` given in `chunks` through a cache, and the cache.

    The models, which have the same weights, take turns, and only what the cache declares and its position go from one
    call to the next: what is remembered anywhere else is lost.
    """
    cache = models[0].init_cache(batch=len(tokens), capacity=tokens.shape[1], dtype=dtype)
    outputs = []
    with torch.inference_mode():
        for turn, chunk in enumerate(tokens.split(list(chunks), dim=1)):
            end = cache.position + chunk.shape[1]
            model = models[turn % len(models)]
            cache = _transplanted(cache, model, capacity=tokens.shape[1], dtype=dtype) if turn else cache
            outputs.append(model(chunk, None if mask is None else mask[:, :end], cache).float())
            model.collect_router_stats()
    return torch.cat(outputs, dim=1), cache


def _transplanted(old: Cache, model: CausalLM, *, capacity: int, dtype: torch.dtype | None) -> Cache:
    """A new cache that holds what the old one declares, and nothing else."""
    batch = next((len(tensor) for layer in old.layers for tensor in layer.tensors.values()), 1)
    new = model.init_cache(batch=batch, capacity=capacity, dtype=dtype)
    new.position = old.position
    for source, target in zip(old.layers, new.layers, strict=True):
        target.position = source.position
        _copy(source, target)
    return new


def _copy(source: LayerCache, target: LayerCache) -> None:
    for name, tensor in target.tensors.items():
        tensor.copy_(source.tensors[name])


def one_by_one(length: int) -> list[int]:
    """Chunks of one token each, of more where that would take too many calls."""
    size = -(-length // MOST_CALLS)
    return [min(size, length - start) for start in range(0, length, size)]


def through_cache(models: Sequence[CausalLM], dtype: torch.dtype | None) -> Predict:
    """What a task's `evaluate` asks, answered token by token through a live cache held in `dtype`."""
    device = models[0].embed.weight.device

    def predict(inputs: Tensor) -> Tensor:
        return decoded(models, inputs.to(device), one_by_one(inputs.shape[1]), dtype)[0]

    return predict
