"""Every check catches a small block that breaks its promise; the other checks let that block pass where they can."""

import inspect
import random

import pytest
import torch
from broken import (
    calls,
    declared,
    healthy,
    hidden,
    leaks,
    memories,
    padded,
    parameters,
    routers,
    slopes,
    triggers,
    unusual,
)

from blocks.state.mlp import MLP
from doge_lab.block import Block
from doge_lab.errors import UserError
from doge_lab.testing import CHECKS, check_block, run_checks

PADDED = {"left_padding", "padding_between_turns"}
LEAK = {"splits_equal_whole", *PADDED}
"""A call that sees the future gives another answer when the future comes in another call, or behind padding."""

BROAD = {"anywhere", "any_length", "any_option", "transplant", "save_load", "declarations_are_pure"}
"""Checks that look at many promises at once, and fail with whatever breaks one: they run where they are the fault."""
QUICK = [name for name, check in CHECKS.items() if check.mode == "quick" and name not in BROAD]
UNREACHED = {"flops", "cache_entries_used", "rows_reorder"}
"""Fail where a cache that nobody filled by the block itself cannot be read."""

# broken block -> (the check that names its fault, others that cannot help failing with it)
BROKEN = {
    leaks.FutureToken: ("causal", LEAK),
    leaks.NormOverTime: ("causal", LEAK),
    leaks.FutureThroughAChunk: ("causal", LEAK),
    leaks.FutureInTrainingOnly: ("causal", set()),
    leaks.FutureByRouting: ("causal", LEAK),
    leaks.LengthDependent: ("causal", LEAK),
    leaks.BatchStatistics: ("rows_independent", {"tokens_independent", "flops"}),
    leaks.RowMean: ("rows_independent", {"rows_reorder", *PADDED}),
    leaks.RoutesAcrossRows: ("rows_independent", {"tokens_independent"}),
    leaks.RoutesAcrossTokens: ("tokens_independent", set()),
    leaks.DropsOverflow: ("tokens_independent", set()),
    leaks.NoMixing: ("mixes_tokens", {"parameters_learn", "cache_entries_used", "active_params"}),
    memories.StateDropped: ("splits_equal_whole", {"padding_between_turns"}),
    memories.WindowOffByOne: ("splits_equal_whole", {"padding_between_turns"}),
    memories.AdvancesTheCache: ("output_shape_and_dtype", set()),
    memories.StateOnModule: ("memory_only_in_cache", {"cache_entries_used", "rows_reorder"}),
    memories.CountsCalls: ("memory_only_in_cache", set()),
    memories.KeepsAViewAlive: ("cache_bytes", set()),
    memories.UndeclaredEntry: ("cache_bytes", set()),
    memories.HidesOnTheCache: ("cache_bytes", set()),
    memories.DeclaresOtherBytes: ("cache_bytes", set()),
    memories.NeverWritten: ("cache_entries_used", set()),
    memories.NeverRead: ("cache_entries_used", set()),
    memories.ChannelsNeverRead: ("cache_entries_used", set()),
    memories.WindowTooWide: ("cache_entries_used", {"padding_between_turns", "bad_options_refused"}),
    memories.KeepsEverything: ("cache_entries_used", {"padding_between_turns", "bad_options_refused"}),
    memories.RowsNotReordered: ("rows_reorder", set()),
    padded.PaddingShiftsPositions: ("left_padding", {"padding_between_turns"}),
    padded.PaddingIsSeen: ("left_padding", {"padding_between_turns"}),
    padded.FloatMasksOnly: ("left_padding", {"causal"}),
    padded.PadsTheStartOnly: ("padding_between_turns", set()),
    # what stood in the memory before decides what else fails
    parameters.Unwritten: ("initialises_everything", set(CHECKS)),
    parameters.HalfWritten: ("initialises_everything", set(CHECKS)),
    parameters.UnwrittenBuffer: ("initialises_everything", {"initialisation_survives_assembly", "flops"}),
    parameters.StrayTensor: (
        "initialises_everything",
        {"initialisation_survives_assembly", "output_shape_and_dtype"},
    ),
    parameters.UnseededInit: ("same_seed_same_weights", {"initialises_everything", "save_load"}),
    parameters.SharedByLayers: ("initialisation_survives_assembly", set()),
    parameters.DeadParameter: ("parameters_learn", set()),
    parameters.DetachedParameter: ("parameters_learn", {"gradients"}),
    parameters.KeyBias: ("parameters_learn", set()),
    parameters.NotSaved: ("save_load", {"flops"}),
    parameters.FlopsTwice: ("flops", set()),
    parameters.FlopsWithoutContext: ("flops", set()),
    parameters.ActiveIsEverything: ("active_params", set()),
    parameters.ActiveWithoutRouter: ("active_params", set()),
    parameters.ActiveHalf: ("active_params", set()),
    routers.DeadRouter: ("router_usage", {"parameters_learn"}),
    routers.Collapsed: ("router_usage", {"rows_reachable"}),
    routers.MasksWithZero: ("router_weights", {"active_params"}),
    routers.ReportsScores: ("router_weights", {"router_usage"}),
    routers.ReportsOtherExperts: ("router_weights", set()),
    routers.SecondBest: ("router_choice", set()),
    routers.WeighsOtherwise: ("router_choice", set()),
    routers.OutOfReach: ("rows_reachable", set()),
    routers.LossPilesUp: ("auxiliary_losses_do_not_accumulate", set()),
    routers.GraphPilesUp: (
        "auxiliary_losses_do_not_accumulate",
        {"parameters_learn", "router_usage", "knowledge_is_counted"},
    ),
    routers.KeepsALog: ("auxiliary_losses_do_not_accumulate", set()),
    routers.KeepsTheSum: ("auxiliary_losses_do_not_accumulate", set()),
    triggers.LongLeak: ("any_length", set()),
    triggers.LateTokenShared: ("any_length", set()),
    triggers.MultipleOf128: ("any_length", set()),
    triggers.LargeBatch: ("anywhere", set()),
    triggers.DeepLayer: ("anywhere", set()),
    triggers.DeepModel: ("anywhere", set()),
    triggers.WithGradients: ("anywhere", {"causal"}),
    triggers.InInferenceMode: ("anywhere", set()),
    triggers.RoomToSpare: ("anywhere", {"splits_equal_whole"}),
    triggers.UnderAutocast: ("anywhere", set()),
    triggers.InBfloat16: ("anywhere", set()),
    triggers.OpenedGate: ("anywhere", set()),
    triggers.BreaksTiesByChunk: ("anywhere", set()),
    triggers.Noise: (
        "anywhere",
        {"knowledge_is_counted", "rows_independent", "tokens_independent", "memory_only_in_cache"},
    ),
    triggers.WritesToItsInputWhenCached: ("anywhere", set()),
    triggers.BetweenOptions: ("any_option", set()),
    hidden.InAGlobal: ("transplant", {"knowledge_is_counted", *UNREACHED}),
    hidden.InAnArray: ("transplant", UNREACHED),
    hidden.OnTheTensor: ("transplant", UNREACHED),
    hidden.LearnsInAClass: ("save_load", set()),
    hidden.LearnsInAList: ("save_load", set()),
    hidden.TableInAClosure: ("knowledge_is_counted", set()),
    hidden.TableInAnArray: ("knowledge_is_counted", set()),
    hidden.TableInACache: ("knowledge_is_counted", {"flops"}),
    hidden.TableFromASeed: ("knowledge_is_counted", {"flops"}),
    hidden.HidesBuffers: ("knowledge_is_counted", {"active_params"}),
    hidden.Tied: ("knowledge_is_counted", set()),
    declared.LessOnMeta: ("declarations_are_pure", set()),
    declared.LessInTraining: ("declarations_are_pure", set()),
    declared.LessInDeepLayers: ("declarations_are_pure", set()),
    declared.MoreBytesInDeepLayers: ("declarations_are_pure", set()),
    declared.MoreOffMeta: ("declarations_are_pure", set()),
    declared.ActiveByLayer: ("declarations_are_pure", set()),
    declared.FewerFlopsForLongContexts: ("flops", set()),
    declared.ProductInDisguise: ("flops", {"search_space_works"}),
    declared.TakesBackByHand: ("flops", set()),
    slopes.LyingBackward: ("gradients", set()),
    slopes.LyingInFloat32: ("gradients", set()),
    slopes.DetachedInput: ("gradients", set()),
    slopes.HalfDetachedInput: ("gradients", set()),
    slopes.HandsOn: ("computes_something", set()),
    slopes.Scales: ("computes_something", set()),
    slopes.IdleWidth: ("width_works", set()),
    slopes.NoSuchWidth: ("width_works", set()),
    slopes.IdleOption: ("search_space_works", set()),
    calls.AlwaysFloat32: ("output_shape_and_dtype", set()),
    calls.WrongShape: ("output_shape_and_dtype", set(CHECKS)),
    calls.LosesTheCache: ("output_shape_and_dtype", set()),
    calls.WritesToItsInput: ("output_shape_and_dtype", set()),
    calls.WritesWhereNothingIsRecorded: ("output_shape_and_dtype", set()),
    calls.FailsUnderAutocast: ("autocast", set()),
    calls.NormOfZero: ("finite", set()),
    calls.GradientOfRoot: ("finite", set()),
    calls.ForgetsInJSON: ("config_round_trip", set()),
    calls.NotJSON: ("config_round_trip", set()),
    calls.DividesByItsOption: ("bad_options_refused", set()),
    calls.FailsLate: ("bad_options_refused", set()),
    calls.VagueMessage: ("bad_options_refused", set()),
    calls.TakesAnything: ("bad_options_refused", {"search_space_works"}),
    calls.ReadsNumbersBack: ("compiles", set()),
    calls.FaultThatIsNone: ("flops", set()),
    calls.FaultNobodyChecks: ("builds", set()),
    calls.CannotBeBuilt: ("builds", set()),
}
UNUSUAL = {unusual.ALiBiWithSinks, unusual.ComplexState, unusual.TwoWindows, unusual.SharedTable}
HEALTHY = {healthy.Decay, healthy.Mean, healthy.Experts, healthy.OpenExperts}
PASSING = {*HEALTHY, *UNUSUAL, parameters.ScaledMLP, calls.DeclaredFault}
MODULES = (calls, declared, healthy, hidden, leaks, memories, padded, parameters, routers, slopes, triggers, unusual)


def failures(block, only=None):
    results = run_checks(block, only=only)
    return {result.name: result.message for result in results if not result.passed}


@pytest.mark.parametrize(("block", "fault", "others"), [(b, *fault) for b, fault in BROKEN.items()])
def test_a_broken_block_fails_its_check_and_no_other(block, fault, others):
    failed = failures(block, only=[*QUICK, fault])
    assert fault in failed
    assert failed.keys() <= {fault, *others}, failed
    for name, message in failed.items():
        assert message, f"{name} says nothing"
        assert "\n" not in message


@pytest.mark.parametrize("block", sorted(PASSING, key=lambda block: block.__name__))
def test_a_healthy_block_passes(block):
    assert failures(block) == {}


def test_every_check_has_a_block_that_it_catches():
    assert {fault for fault, _ in BROKEN.values()} == set(CHECKS)


def test_every_broken_block_is_in_the_table():
    classes = {
        value
        for module in MODULES
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Block) and value.__module__ == module.__name__
        if not value.__name__.startswith("_")
    }
    assert classes == set(BROKEN) | PASSING


@pytest.mark.parametrize(
    ("block", "check", "words"),
    [
        (leaks.FutureToken, "causal", "changed an earlier token's output"),
        (memories.StateDropped, "splits_equal_whole", "calls of 5 + 5 + 5 + 2 tokens differ from one call"),
        (memories.UndeclaredEntry, "cache_bytes", "the cache holds 'extra', which cache_spec does not declare"),
        (memories.CountsCalls, "memory_only_in_cache", "a call changes 'calls' of the block"),
        (parameters.StrayTensor, "initialises_everything", "'table' is a tensor on the meta device for ever"),
        (parameters.FlopsTwice, "flops", "declares 32768 FLOPs per token at a context of 1; PyTorch counts 16384"),
        (routers.DeadRouter, "router_usage", "collapsed before training: 512 tokens use 2.0 of 8 experts"),
        (calls.TakesAnything, "bad_options_refused", "d_hiddenx=1 is accepted"),
        (calls.CannotBeBuilt, "builds", "KeyError: 'something'"),
        (calls.FaultNobodyChecks, "builds", "names 'flop', which is no check; did you mean 'flops'?"),
    ],
)
def test_messages_say_what_is_wrong(block, check, words):
    (result,) = run_checks(block, only=[check])
    assert words in result.message


def test_a_declared_fault_is_reported_by_name():
    (result,) = run_checks(calls.DeclaredFault, only=["flops"])
    assert (result.status, result.passed) == ("known_fault", True)
    assert result.message.startswith("as published, it counts nothing (seen: declares 0 FLOPs")


def test_a_declared_fault_that_does_not_occur_is_a_failure():
    (result,) = run_checks(calls.FaultThatIsNone, only=["flops"])
    assert (result.status, result.passed) == ("failed", False)
    assert result.message == "the declared fault does not occur: it counts nothing"


def test_check_block_lists_every_failed_check():
    with pytest.raises(AssertionError) as error:
        check_block(routers.DeadRouter)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("DeadRouter fails 2 of ")
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["parameters_learn", "router_usage"]
    check_block(MLP, d_hidden=8)


def test_options_that_cannot_build_the_block_fail_one_check():
    (result,) = run_checks(MLP, {"d_hiden": 8})
    assert (result.name, result.passed) == ("builds", False)
    assert "did you mean 'd_hidden'?" in result.message


def test_only_names_checks():
    seen = []
    results = run_checks(MLP, only=["causal", "flops", "compiles"], on_result=seen.append)
    assert [(r.name, r.status) for r in results] == [("causal", "skipped"), ("flops", "passed"), ("compiles", "passed")]
    assert seen == results
    with pytest.raises(UserError, match="no check is named 'flop'; did you mean 'flops'"):
        run_checks(MLP, only=["flop"])


def test_quick_and_full():
    quick = {result.name for result in run_checks(healthy.Experts)}
    full = {result.name for result in run_checks(healthy.Experts, full=True)}
    assert full - quick == {"compiles"}
    assert {check.name for check in CHECKS.values() if check.mode == "full"} == {"compiles"}


def test_the_caller_s_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random.seed(5)
    drawn = random.random()
    random.seed(5)
    run_checks(MLP, only=["rows_independent", "anywhere"])
    assert torch.equal(torch.rand(3), expected)
    assert random.random() == drawn


def test_every_check_states_its_promise_in_one_line():
    for name, check in CHECKS.items():
        assert check.name == name
        assert 20 < len(check.promise) < 130, name
