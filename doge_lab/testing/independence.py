"""Checks of who may depend on whom: rows on no other row, tokens on no later token, a state block's on no other.

Each is made in evaluation and in training mode, since batch statistics leak in training alone.

Shape letters: B batch row, T token, D d_model.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from doge_lab.determinism import seed_torch
from doge_lab.testing.case import NOTICEABLE, TOLERANCE, Case, check, close, output, relative_difference, require


@check()
def rows_independent(case: Case) -> None:
    """A row of the batch gives what it gives alone, whatever the other rows hold."""
    x = case.input(4)
    for block, run in _modes(case):
        y = run(x)
        for scale in (1.0, 30.0):
            changed = x.clone()
            changed[0] += scale * case.input(1, seed=7)[0]
            close(run(changed)[1:], y[1:], f"changing row 0 changed another row{_mode(block)}")
    with torch.no_grad():
        block = case.trained()
        alone = [output(block, row) for row in x.split(1)]
        close(torch.cat(alone), output(block, x), "a row alone differs from the row in a batch")


@check(kind="state")
def tokens_independent(case: Case) -> None:
    """A state block gives each token what it gives that token alone."""
    x = case.input()
    for block, run in _modes(case):
        y, others = run(x), torch.arange(x.shape[1]) != 5
        for scale in (1.0, 30.0):
            changed = x.clone()
            changed[:, 5] += scale * case.input(3, 1, seed=7)[:, 0]
            close(run(changed)[:, others], y[:, others], f"changing a token changed another token{_mode(block)}")
    block = case.trained()
    with torch.no_grad():
        tokens = x.split(1, dim=1)
        alone = torch.cat([output(block, token) for token in tokens], dim=1)
        close(alone, output(block, x), "a token alone differs from the token in its row")
        # capacity limits drop tokens only when many of them want the same expert
        crowds = torch.cat([output(block, token[:1].repeat(4, 32, 1)) for token in tokens], dim=1)
        expected = alone[:1].repeat_interleave(32, dim=1).expand_as(crowds)
        close(crowds, expected, "equal tokens in one batch give different outputs")


@check(kind="sequence")
def causal(case: Case) -> None:
    """Changing a token, or cutting the tokens after it, changes nothing earlier and something from it on."""
    x = case.input(length=40)
    for block, run in _modes(case):
        y = run(x)
        for t in (1, 16, 17, 32, 38, 39):
            noise = case.input(3, 40, seed=t)
            for scale in (1.0, 30.0):
                changed = torch.cat([x[:, :t], x[:, t:] + scale * noise[:, t:]], dim=1)
                promise = f"changing token {t} and later changed an earlier token's output{_mode(block)}"
                close(run(changed)[:, :t], y[:, :t], promise, whole=y)
            z = run(torch.cat([x[:, :t], x[:, t : t + 1] + 3 * noise[:, :1], x[:, t + 1 :]], dim=1))
            promise = f"changing token {t} changed an earlier token's output{_mode(block)}"
            close(z[:, :t], y[:, :t], promise, whole=y)
            later = relative_difference(z[:, t:], y[:, t:])
            require(block.is_none or later > NOTICEABLE, f"changing token {t} changed nothing from it on")
    block = case.trained()
    _require_prefixes(case, block)
    _require_no_gradient_from_the_future(case, block)


def _require_prefixes(case: Case, block: Any) -> None:
    lengths = {40: (1, 2, 16, 33), 130: (65,)} | ({520: (257,)} if case.full else {})
    for length, cuts in lengths.items():
        x, ones = case.input(2, length), torch.ones(2, length)
        with torch.no_grad():
            y = output(block, x)
            close(output(block, x, ones), y, "a mask of ones changes the output")
            for cut in cuts:
                promise = f"the first {cut} of {length} tokens alone give other outputs"
                close(output(block, x[:, :cut]), y[:, :cut], promise, whole=y)
                masked = output(block, x[:, :cut], ones[:, :cut])
                close(masked, y[:, :cut], f"{promise} with a mask of ones", whole=y)


def _require_no_gradient_from_the_future(case: Case, block: Any) -> None:
    x = case.input(2, 40).requires_grad_()
    y = output(block, x)
    if not y.requires_grad:
        return
    weights = case.input(2, 40, seed=9)
    (whole,) = torch.autograd.grad((y * weights).sum(), x, retain_graph=True)
    for t in range(1, 40) if case.full else (1, 2, 16, 32, 39):
        (gradient,) = torch.autograd.grad((y * weights)[:, :t].sum(), x, retain_graph=True)
        leak = float(gradient[:, t:].abs().max() / (whole.abs().max().item() or 1.0))
        require(leak <= TOLERANCE, f"the outputs before token {t} have a gradient ({leak:.2g}) from token {t} or later")


@check(kind="sequence")
def mixes_tokens(case: Case) -> None:
    """Information moves between tokens: the last output depends on the tokens before it."""
    block, x = case.trained(), case.input()
    require(not block.is_none or not block.cache_spec(), "`none` declares a cache")
    if block.is_none:
        return
    changed = x.clone()
    changed[:, -5:-1] = case.input(3, 4, seed=7)
    with torch.no_grad():
        y, z = output(block, x), output(block, changed)
    moved = relative_difference(z[:, -1], y[:, -1])
    require(moved > NOTICEABLE, "no information moves between tokens: the last output ignores the four before it")


def _modes(case: Case) -> Iterator[tuple[Any, Any]]:
    """The block in evaluation and in training mode, with a function that runs it under one seed without gradients."""
    for training in (False, True):
        block = case.trained().train(training)

        def run(x: Tensor, block: Any = block) -> Tensor:
            seed_torch(0)  # dropout, if any, drops the same each time
            with torch.no_grad():
                return output(block, x)

        yield block, run


def _mode(block: Any) -> str:
    return " in training mode" if block.training else ""
