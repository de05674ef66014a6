"""Running the checks of the contract over one block."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch

from doge_lab.block import Block, SequenceBlock, StateBlock
from doge_lab.cache import Fixed, PerToken
from doge_lab.determinism import seed_torch
from doge_lab.errors import UserError, did_you_mean, one_line
from doge_lab.testing import (
    anywhere,
    costs,
    drawn_options,
    entries,
    function,
    gradients,
    independence,
    knowledge,
    lengths,
    memory,
    options,
    outputs,
    padding,
    routing,
    transplant,
    weights,
)
from doge_lab.testing.case import Case, Check, Skipped, check, require
from doge_lab.testing.situation import own_generators

Status = Literal["passed", "failed", "known_fault", "skipped"]


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What one check found. `message` is one line: what is wrong, the reason of a skip, or empty."""

    name: str
    passed: bool
    message: str
    status: Status


@check()
def builds(case: Case) -> None:
    """The class is a block that can be built with these options, and declares what it must in the right types."""
    require(
        isinstance(case.block, type) and issubclass(case.block, SequenceBlock | StateBlock),
        f"{case.block!r} is no block class: subclass SequenceBlock or StateBlock of doge_lab.block",
    )
    block = case.build()
    for name in block.known_faults():
        require(name in CHECKS, f"known_faults names {name!r}, which is no check{did_you_mean(name, list(CHECKS))}")
    if isinstance(block, SequenceBlock):
        for name, entry in block.cache_spec().items():
            require(isinstance(entry, Fixed | PerToken), f"cache_spec()[{name!r}] is {entry!r}, not Fixed or PerToken")


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        each.name: each
        for each in (
            builds,
            outputs.output_shape_and_dtype,
            outputs.autocast,
            outputs.finite,
            weights.initialises_everything,
            weights.same_seed_same_weights,
            weights.initialisation_survives_assembly,
            weights.parameters_learn,
            gradients.gradients,
            transplant.save_load,
            knowledge.knowledge_is_counted,
            independence.rows_independent,
            independence.tokens_independent,
            independence.causal,
            independence.mixes_tokens,
            memory.splits_equal_whole,
            memory.cache_bytes,
            entries.cache_entries_used,
            memory.memory_only_in_cache,
            transplant.transplant,
            memory.rows_reorder,
            padding.left_padding,
            padding.padding_between_turns,
            costs.flops,
            costs.active_params,
            knowledge.declarations_are_pure,
            routing.router_weights,
            routing.router_choice,
            routing.router_usage,
            routing.rows_reachable,
            routing.auxiliary_losses_do_not_accumulate,
            function.computes_something,
            function.width_works,
            function.search_space_works,
            options.config_round_trip,
            options.bad_options_refused,
            lengths.any_length,
            anywhere.anywhere,
            drawn_options.any_option,
            outputs.compiles,
        )
    }
)
"""Every check by name, in the order in which they run."""


def run_checks(
    block: type[Block],
    options: Mapping[str, Any] | None = None,
    *,
    d_model: int = 32,
    only: Sequence[str] | None = None,
    full: bool = False,
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Look at `block`, built with `options`, through every check of its kind; a faulty block never raises.

    `only` names the checks to run, whatever their mode. `full` adds the slow ones and more cases to the others.
    `on_result` is called after each check. Raises `UserError` for an unknown name in `only`.
    """
    for name in only or ():
        if name not in CHECKS:
            raise UserError(f"no check is named {name!r}{did_you_mean(name, list(CHECKS))}")
    case = Case(block, dict(options or {}), d_model, full)
    results: list[CheckResult] = []

    def add(result: CheckResult) -> CheckResult:
        results.append(result)
        if on_result is not None:
            on_result(result)
        return result

    built = _run(builds, case, {})
    if not built.passed or only is None or "builds" in only:
        add(built)
    if not built.passed:
        return results
    with torch.random.fork_rng(devices=[]):
        faults = case.build().known_faults()
    for each in CHECKS.values():
        wanted = each.name in only if only is not None else _applies(each, case) and (full or each.mode == "quick")
        if wanted and each is not builds:
            add(_run(each, case, faults))
    return results


def check_block(block: type[Block], *, d_model: int = 32, full: bool = False, **options: Any) -> None:
    """Raise `AssertionError` that lists every promise `block`, built with `options`, does not keep."""
    results = run_checks(block, options, d_model=d_model, full=full)
    failed = [f"  {result.name}: {result.message}" for result in results if not result.passed]
    if failed:
        raise AssertionError("\n".join([f"{block.__name__} fails {len(failed)} of {len(results)} checks", *failed]))


def _applies(each: Check, case: Case) -> bool:
    return each.kind is None or each.kind == case.block.kind


def _run(each: Check, case: Case, faults: Mapping[str, str]) -> CheckResult:
    if not _applies(each, case):
        return CheckResult(each.name, True, f"for {each.kind} blocks only", "skipped")
    problem = None
    try:
        # warnings are advice on speed, and no promise: they must not decide under a filter that makes them errors
        with own_generators(), warnings.catch_warnings(action="ignore"):
            seed_torch(0)
            each.run(case)
    except Skipped as reason:
        return CheckResult(each.name, True, str(reason), "skipped")
    except AssertionError as error:
        problem = one_line(error, named=False)
    except (Exception, SystemExit) as error:
        problem = one_line(error)
    return _judged(each.name, problem, faults.get(each.name))


def _judged(name: str, problem: str | None, fault: str | None) -> CheckResult:
    if fault is None:
        return CheckResult(name, problem is None, problem or "", "passed" if problem is None else "failed")
    if problem is None:
        return CheckResult(name, False, f"the declared fault does not occur: {fault}", "failed")
    return CheckResult(name, True, f"{fault} (seen: {problem})", "known_fault")
