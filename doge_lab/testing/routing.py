"""Checks of routers: what a block reports of its choices, and whether the choices make use of the experts.

A block without router statistics has nothing to look at here.

Shape letters: B batch row, T token, D d_model, E expert.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from doge_lab.block import RouterStats, Routing
from doge_lab.determinism import seed_torch
from doge_lab.testing.attributes import plain_attributes, same
from doge_lab.testing.case import Case, Skipped, check, close, fit, output, require, training_loss

SPREAD = 0.1
"""Share of the experts beside one token's picks that tokens together must use, counted as exp(entropy)."""


@check()
def router_weights(case: Case) -> None:
    """A router's report fits what it does: usage [E] sums to 1, and experts not chosen do not reach the output."""
    block = case.trained()
    stats = _stats(block, case.input())
    _require_shares(stats.usage)
    for name in ("loss", "balance_loss", "z_loss"):
        value = getattr(stats, name)
        require(value.ndim == 0 and value.isfinite(), f"router_stats.{name} is not a finite scalar")
    tables = _expert_tables(block, len(stats.usage))
    for seed in range(4) if len(tables) > 1 else ():
        chosen = _stats(block, case.input(1, 1, seed=seed)).usage > 0
        if not chosen.all():
            _require_only_chosen(case, block, tables, chosen, seed)


@check()
def router_choice(case: Case) -> None:
    """A router chooses what brute force chooses among all scores, and weighs it as the normalisation it names says."""
    block = case.trained()
    for x in (case.input(), case.input(4, 64, seed=3)):
        with torch.no_grad():
            routing = block.routing(x.clone())
            if routing is None:
                raise Skipped("the block names no routing")
            stats = _stats(block, x)
            _require_best(routing)
            _require_normalised(routing)
            _require_reported(routing, stats.usage)


def _require_best(routing: Routing) -> None:
    scores, chosen = routing.scores.double(), routing.chosen
    queries, k = chosen.shape
    require(len(scores) == queries, f"routing has scores of {len(scores)} queries and choices of {queries}")
    ordered = chosen.sort(-1).values
    require((ordered[:, 1:] != ordered[:, :-1]).all(), "a query chooses the same expert twice")
    if routing.normalisation.startswith("sigmoid"):
        scores = scores.sigmoid()
    if routing.selection_bias is not None:
        scores = scores + routing.selection_bias
    # by value: where experts tie, either may be chosen
    missed = scores.topk(k).values - scores.gather(-1, chosen).sort(-1, descending=True).values
    worst = float(missed.abs().max() / scores.abs().max().clamp(min=1e-30))
    require(worst < 1e-5, f"the chosen are not the {k} best of {scores.shape[-1]}: off by {worst:.2g} of the top score")


def _require_normalised(routing: Routing) -> None:
    require(routing.normalisation in _NORMALISATIONS, f"no normalisation is named {routing.normalisation!r}")
    every = routing.scores.double()
    expected = routing.scale * _NORMALISATIONS[routing.normalisation](every.gather(-1, routing.chosen), every)
    close(routing.weights, expected, f"the weights are no {routing.normalisation} of the scores")


_NORMALISATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax_chosen": lambda chosen, every: chosen.softmax(-1),
    "softmax_all": lambda chosen, every: (chosen - every.logsumexp(-1, keepdim=True)).exp(),
    "sigmoid": lambda chosen, every: chosen.sigmoid(),
    "sigmoid_chosen": lambda chosen, every: chosen.sigmoid() / chosen.sigmoid().sum(-1, keepdim=True),
    "none": lambda chosen, every: torch.ones_like(chosen),
}
"""Scores of the chosen, and of all -> weights; apart from what blocks use, so that no mistake is shared."""


def _require_reported(routing: Routing, usage: Tensor) -> None:
    counted = torch.bincount(routing.chosen.flatten(), minlength=len(usage)) / routing.chosen.numel()
    close(usage, counted, "router_stats.usage is not what the routing chooses")


def _expert_tables(block: nn.Module, n_experts: int) -> list[Tensor]:
    """Parameters with a matrix row (or more) per expert, other than linear maps, one of which is the router."""
    maps = {id(module.weight) for module in block.modules() if isinstance(module, nn.Linear)}
    return [p for p in block.parameters() if p.ndim > 1 and len(p) == n_experts and id(p) not in maps]


def _require_shares(usage: Tensor) -> None:
    require(usage.ndim == 1, f"router_stats.usage has shape {tuple(usage.shape)}, not [experts]")
    require((usage >= 0).all(), "router_stats.usage holds negative shares")
    total = float(usage.sum())
    require(abs(total - 1) < 1e-4, f"router_stats.usage sums to {total:.4g}, not to 1")


def _require_only_chosen(case: Case, block: Any, tables: list[Tensor], chosen: Tensor, seed: int) -> None:
    """Some table has gradients in the rows of chosen experts alone (a router's own matrix may have them in all)."""
    block.zero_grad()
    y = output(block, case.input(1, 1, seed=seed))
    (y * case.input(1, 1, seed=70 + seed)).sum().backward()
    reached = [(p.grad.reshape(len(p), -1) != 0).any(1) for p in tables if p.grad is not None]
    confined = [not (rows & ~chosen).any() for rows in reached]
    require(any(confined), f"experts besides the {int(chosen.sum())} that router_stats.usage reports reach the output")


@check()
def router_usage(case: Case) -> None:
    """Different tokens choose different experts, at first and after some training."""
    block = case.build()
    if _require_spread(case, block, "before training"):
        fit(case, block, steps=200 if case.full else 15, lr=3e-3)
        _require_spread(case, block, "after some training")


def _require_spread(case: Case, block: Any, when: str) -> bool:
    """Returns whether there is room to collapse from: one token picks at most half of the experts."""
    with torch.no_grad():
        usage = _stats(block, case.input(16, 32, seed=5)).usage.double()
        picks = max(int((_stats(block, case.input(1, 1, seed=seed)).usage > 0).sum()) for seed in range(8))
    used = float(torch.special.entr(usage).sum().exp())
    if picks == len(usage):
        return False
    require(
        used >= min(1.5 * picks, picks + SPREAD * (len(usage) - picks)),
        f"the router has collapsed {when}: 512 tokens use {used:.1f} of {len(usage)} experts, one token picks {picks}",
    )
    return 2 * picks <= len(usage)


@check(kind="state")
def rows_reachable(case: Case) -> None:
    """Every row of every parameter can be reached: tokens together touch about as many rows as they pick."""
    block = case.build()
    with torch.no_grad():
        for parameter in block.parameters():
            # away from any start: what rows can be reached at all, not what an untrained router prefers
            parameter += parameter.abs().mean().clamp(min=0.1) * torch.randn_like(parameter)
    singles = [_touched(case, block, 1, seed) for seed in range(4)]
    alone = {name: max(single[name] for single in singles) for name in singles[0]}
    together = _touched(case, block, 2048, 9)
    for name, parameter in block.named_parameters():
        rows = parameter.shape[0] if parameter.ndim else 1
        # what 2048 tokens would touch if each of them picked its rows by chance
        expected = rows * (1 - (1 - min(1.0, alone[name] / rows)) ** 2048)
        require(
            together[name] >= expected / 3,
            f"2048 tokens reach {together[name]} of the {rows} rows of {name!r}; by chance it would be {expected:.0f}",
        )


def _touched(case: Case, block: Any, tokens: int, seed: int) -> dict[str, int]:
    block.zero_grad()
    y = output(block, case.input(1, tokens, seed=seed))
    if y.requires_grad:
        (y * case.input(1, tokens, seed=70)).sum().backward()
    return {
        name: 0 if parameter.grad is None else int((parameter.grad.reshape(len(parameter), -1) != 0).any(1).sum())
        for name, parameter in block.named_parameters()
        if parameter.ndim
    } | {name: 1 for name, parameter in block.named_parameters() if not parameter.ndim}


@check()
def auxiliary_losses_do_not_accumulate(case: Case) -> None:
    """A second forward and backward gives the same losses and gradients as the first, and nothing piles up."""
    block, x, target = case.trained().train(), case.input(), case.input(seed=2)
    first, held = _pass(block, x, target), plain_attributes(block)
    second, still_held = _pass(block, x, target), plain_attributes(block)
    for name, value in first.items():
        close(second[name], value, f"{name} differs in a second pass over the same batch")
    for name, value in still_held.items():
        # a plain count of steps is no pile
        changed = not isinstance(value, int) and not same(value, held.get(name))
        require(not changed, f"{name!r} of the block differs after a second pass over the same batch")


def _pass(block: Any, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    block.zero_grad()
    seed_torch(0)
    loss = training_loss(block, x, target)
    if not loss.requires_grad:
        return {"the loss": loss.detach()}
    stats: RouterStats | None = block.router_stats
    reported = {} if stats is None else {"the auxiliary loss": stats.loss.detach().clone()}
    if stats is not None:
        reported |= {"balance_loss": stats.balance_loss.detach().clone(), "z_loss": stats.z_loss.detach().clone()}
    loss.backward()
    gradients = {
        f"the gradient of {name!r}": parameter.grad.clone()
        for name, parameter in block.named_parameters()
        if parameter.grad is not None
    }
    return {**reported, "the loss": loss.detach(), **gradients}


def _stats(block: Any, x: Tensor) -> RouterStats:
    block.router_stats = None
    output(block, x)
    if block.router_stats is None:
        raise Skipped("the block reports no router statistics")
    return block.router_stats
