"""The promises of `doge_lab.block` asked of a whole trained model, as it is used: at its own depth, length, batch, type
and device. A block may keep a promise where it is checked alone and break it here.

    check_model(model, reloaded, tokens, thorough=True)      # a list of CheckResult

Shape letters: B batch row, T token, D d_model, V vocabulary.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from doge_lab.cost import cost_of, declared_by
from doge_lab.errors import one_line
from doge_lab.model import CausalLM
from doge_lab.testing.assembled import (
    EVALUATION,
    GRADIENTS,
    INFERENCE,
    MANNERS,
    MIXED,
    TRAINING,
    Assembled,
    Manner,
    decoded,
    one_by_one,
)
from doge_lab.testing.case import TOLERANCE, require
from doge_lab.testing.runner import CheckResult


@dataclass(frozen=True)
class ModelCheck:
    """One promise. `rests_on`: the checks of a single block that it repeats; a known fault of these is one of it."""

    promise: str
    run: Callable[[Assembled, bool], None]
    rests_on: frozenset[str]

    @property
    def name(self) -> str:
        return self.run.__name__


def _rests_on(*checks: str) -> Callable[[Callable[[Assembled, bool], None]], ModelCheck]:
    def make(run: Callable[[Assembled, bool], None]) -> ModelCheck:
        return ModelCheck((run.__doc__ or "").rstrip("."), run, frozenset(checks))

    return make


@_rests_on("save_load")
def live_is_reloaded(case: Assembled, thorough: bool) -> None:
    """What training taught is in the saved weights: the model and one that loaded them give the same logits."""
    with torch.no_grad():
        live, reloaded = (model(case.tokens) for model in (case.model, case.reloaded))
    _require_same(reloaded, live, "a model with the saved weights gives other logits")


@_rests_on("cache_bytes", "flops", "active_params")
def declares_the_same(case: Assembled, thorough: bool) -> None:
    """A trained model declares the parameters, FLOPs and cache bytes that were counted before it was built."""
    context = case.tokens.shape[1]
    expected = cost_of(case.model.config, context)
    for training in (False, True):
        try:
            found = declared_by(case.model.train(training), context)
        finally:
            case.model.eval()
        for name in ("params", "active_params", "flops_per_token", "cache_bytes"):
            counted, declared = getattr(expected, name), getattr(found, name)
            when = "in training" if training else "in evaluation"
            require(
                counted == declared, f"{name} was {counted:,} before it was built; trained it says {declared:,} {when}"
            )


@_rests_on("causal")
def later_tokens(case: Assembled, thorough: bool) -> None:
    """Changing or cutting later tokens changes no earlier logits."""
    for tokens, manner in _asked(case, thorough):
        length, y, other = tokens.shape[1], case.answer(manner, tokens), case.random(*tokens.shape)
        closely = thorough and manner in (EVALUATION, TRAINING)
        for t in sorted({length // 2, *((1, length // 3, length - 1) if closely else ())} - {0}):
            given = {"changed": torch.cat([tokens[:, :t], other[:, t:]], dim=1)}
            if thorough or manner is INFERENCE:
                given["cut"] = tokens[:, :t]
            for how, these in given.items():
                promise = f"tokens {t} and later, {how}, change earlier logits"
                case.require_equal(case.logits(manner, these)[:, :t], y[:, :t], promise, manner, (tokens, None))


@_rests_on("causal")
def gradient_from_later(case: Assembled, thorough: bool) -> None:
    """In training, the logits of a token have no gradient from later tokens."""
    length = case.tokens.shape[1]
    for t in sorted({length // 2, length - 1} - {0}) if thorough else ():
        held: list[Tensor] = []
        hook = case.model.embed.register_forward_hook(lambda _module, _args, x, held=held: held.append(x))
        try:
            case.model.train()
            logits = case.model(case.tokens)
        finally:
            hook.remove()
            case.model.eval()
            case.model.collect_router_stats()
        (gradient,) = torch.autograd.grad(logits[:, :t].float().square().sum(), held)
        leak = float(gradient[:, t:].abs().max() / (gradient.abs().max().item() or 1.0))
        require(leak <= TOLERANCE, f"the logits before token {t} have a gradient ({leak:.2g}) from token {t} or later")


@_rests_on("rows_independent")
def other_rows(case: Assembled, thorough: bool) -> None:
    """A row of the batch gives what it gives beside other rows, fewer rows, or alone."""
    for tokens, manner in _asked(case, thorough):
        y, half = case.answer(manner, tokens), (len(tokens) + 1) // 2
        given = [("other", half, torch.cat([tokens[:half], case.random(*tokens[half:].shape)]))]
        if thorough or manner is INFERENCE:
            given += [("fewer", kept, tokens[:kept]) for kept in ((half, 1) if thorough else (1,))]
        for how, kept, these in given:
            promise = f"{how} rows in the batch change a row's logits"
            case.require_equal(case.logits(manner, these)[:kept], y[:kept], promise, manner, (tokens, None))


@_rests_on("splits_equal_whole", "memory_only_in_cache")
def decoding(case: Assembled, thorough: bool) -> None:
    """Decoded in several calls with a cache, the logits are those of one call without."""
    for tokens in (case.tokens, case.repeating):
        whole = case.answer(EVALUATION if thorough else INFERENCE, tokens)
        for chunks in _splits(tokens.shape[1], thorough):
            given = " + ".join(map(str, chunks[:5])) + (" + ..." if len(chunks) > 5 else "")
            actual, _ = decoded([case.model, case.reloaded], tokens, chunks, torch.float32)
            promise = f"decoded in calls of {given} tokens, the logits are others than in one call"
            case.require_equal(actual, whole, promise, EVALUATION, (tokens, None))
            if not thorough:
                return


def _splits(length: int, thorough: bool) -> Iterator[list[int]]:
    first = length // 2
    yield [part for part in (first, 1, length - first - 2, 1) if part > 0] if length > 1 else [1]
    if thorough:
        yield one_by_one(length)
        rng, left = random.Random(length), length
        chunks = []
        while left:
            chunks.append(rng.randint(1, max(1, min(left, length // 3))))
            left -= chunks[-1]
        yield chunks


@_rests_on("cache_bytes")
def held_bytes(case: Assembled, thorough: bool) -> None:
    """A cache that was decoded with holds the bytes that were declared before the model was built."""
    tokens = case.tokens
    dtype = getattr(torch, case.model.config.cache_dtype)
    chunks = next(_splits(tokens.shape[1], thorough))
    logits, cache = decoded([case.model], tokens, chunks, dtype)
    require(logits.isfinite().all(), f"decoded with a cache of {case.model.config.cache_dtype}, logits are not finite")
    declared = len(tokens) * cost_of(case.model.config, tokens.shape[1]).cache_bytes
    held = cache.nbytes()
    require(declared == held, f"{declared:,} bytes of cache are declared for the batch, {held:,} are held")


@_rests_on("left_padding")
def padding(case: Assembled, thorough: bool) -> None:
    """Left padding, up to half of a row, changes no logits of real tokens, in one call and in several."""
    for tokens in (case.tokens[:4], case.repeating[:4]) if thorough and case.tokens.shape[1] > 1 else ():
        rows, length = tokens.shape
        pads = [row * (length // 2) // max(1, rows - 1) for row in range(rows)]
        mask = torch.arange(length, device=case.device)[None] >= torch.tensor(pads, device=case.device)[:, None]
        whole = case.logits(EVALUATION, tokens, mask)
        in_calls, _ = decoded([case.model], tokens, next(_splits(length, False)), torch.float32, mask)
        for row, pad in enumerate(pads):
            alone = tokens[row : row + 1, pad:]
            expected = case.logits(EVALUATION, alone)
            for actual, how in ((whole, "in one call"), (in_calls, "in several calls")):
                promise = f"{pad} tokens of left padding change the logits of real tokens {how}"
                case.require_equal(actual[row : row + 1, pad:], expected, promise, EVALUATION, (alone, None))


@_rests_on("memory_only_in_cache")
def same_again(case: Assembled, thorough: bool) -> None:
    """Asked again, with gradients or without, in inference mode or not, the model gives the same logits."""
    for tokens in (case.tokens, case.repeating) if thorough else (case.tokens,):
        y = case.answer(INFERENCE, tokens)
        for manner in (INFERENCE, EVALUATION, GRADIENTS) if thorough else (INFERENCE,):
            _require_same(case.logits(manner, tokens), y, f"asked again {manner.name}, the model gives other logits")


def _require_same(actual: Tensor, expected: Tensor, promise: str) -> None:
    """The same arithmetic: all is equal but for a device that adds in no fixed order, where a router may then turn."""
    largest = float(expected.abs().max()) or 1.0
    share = float((~((actual - expected).abs().amax(-1) <= TOLERANCE * largest)).float().mean())
    require(share <= 0.01, f"{promise} at {share:.0%} of the tokens")


def _asked(case: Assembled, thorough: bool) -> Iterator[tuple[Tensor, Manner]]:
    """The tokens to ask, and how."""
    if not thorough:
        yield from ((case.tokens, manner) for manner in (INFERENCE, TRAINING))
        return
    yield from ((case.tokens, manner) for manner in MANNERS)
    yield from ((case.repeating, manner) for manner in (EVALUATION, TRAINING, MIXED))


MODEL_CHECKS = (
    live_is_reloaded,
    declares_the_same,
    later_tokens,
    gradient_from_later,
    other_rows,
    decoding,
    held_bytes,
    padding,
    same_again,
)
"""In the order in which they run."""


def check_model(case: Assembled, *, thorough: bool) -> list[CheckResult]:
    """Ask a trained model; a faulty one never raises. `thorough` is for a model that is to stand on a front.

    A promise that a block of the model is known to break (`Block.known_faults`) is not asked, which its result says.
    """
    case.model.eval()
    results = []
    # Forked once for all: a check that began with the numbers of another would not see noise.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        for check in MODEL_CHECKS:
            faults = faults_of(check, case.model)
            if faults:
                results.append(CheckResult(check.name, True, f"not asked: {faults[0]}", "known_fault"))
            else:
                results.append(_result(check, case, thorough))
    return results


def faults_of(check: ModelCheck, model: CausalLM) -> list[str]:
    """Known faults of the model's blocks for which `check` cannot be asked."""
    return [
        f"{type(block).__name__} is known to fail {name}"
        for block in model.blocks()
        for name in sorted(check.rests_on & block.known_faults().keys())
    ]


def _result(check: ModelCheck, case: Assembled, thorough: bool) -> CheckResult:
    problem = ""
    try:
        check.run(case, thorough)
    except AssertionError as error:
        problem = one_line(error, named=False)
    except Exception as error:
        problem = one_line(error)
    return CheckResult(check.name, not problem, problem, "failed" if problem else "passed")
