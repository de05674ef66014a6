"""The terminal's view of a search: honest counts, an honest guess at the time left, no control codes in a log."""

import io

import pytest
from rich.console import Console

from doge_lab.report.live import LiveFront
from doge_lab.report.table import front_table
from doge_lab.search.front import Results, Trial, candidates, front

OBJECTIVES = {"cache_bytes": "minimize", "capacity.bits": "maximize"}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def trial(number, cache_bytes=64, bits=1000.0, state="complete", **changes):
    layers = [{"sequence": "none", "state": {"type": "mlp", "d_hidden": 10 + number}}]
    made = {"candidate": str(number), "config": {"model": {"d_model": 16, "layers": layers}}}
    if state == "complete":
        made["values"] = {"cache_bytes": cache_bytes, "capacity.bits": bits}
    return Trial(number, state, **{**made, **changes})


@pytest.fixture
def plain():
    """A view whose console is a file, the file, and the clock that both go by."""
    clock, console = Clock(), Console(file=io.StringIO(), width=40)
    return LiveFront(OBJECTIVES, 10, console, clock), console.file, clock


def test_a_log_gets_one_plain_line_per_finished_trial(plain):
    view, file, clock = plain
    with view:
        view.update([], running=2)
        clock.now = 30
        view.update([trial(0, bits=18420.4), trial(1, state="running")], running=2)
        view.update([trial(0, bits=18420.4), trial(1, state="running")], running=2, note="trial 1: 30/400")
        clock.now = 40
        view.update([trial(0), trial(1, state="rejected", reason="too\nlarge"), trial(2)], running=0)
    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("trial 0 complete | ")
    for said in ("cache bytes per sequence 64", "knowledge, bits 18,420", "d16: mlp(10)", "1/10", "4 min 30 s left"):
        assert said in lines[0]
    assert lines[1].startswith("trial 1 rejected | ")
    assert "too large" in lines[1]
    assert "2/10, 2 min 40 s left" in lines[2]
    assert "2/10 trained: 2 complete, 1 rejected, 0 failed, 0 running; 40 s so far" in lines[3]


def test_no_control_codes_in_a_log(plain):
    view, file, _ = plain
    with view:
        view.update([], running=1)
        view.update([trial(0, state="failed", reason="\x1b[31mred [bold]not markup[/bold]\r")], running=0)
    assert file.getvalue().replace("\n", "").isprintable()
    assert "[bold]not markup[/bold]" in file.getvalue()


def test_resumed_trials_count_as_done_but_not_for_the_speed(plain):
    view, file, clock = plain
    before = [trial(number) for number in range(6)]
    with view:
        view.update(before, running=2)
        clock.now = 20
        view.update([*before, trial(6)], running=2)
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("resuming: 6/10 trained")
    assert "time left unknown" in lines[0]
    assert "7/10, 1 min 00 s left" in lines[1]
    assert len(lines) == 3


def test_a_fresh_search_that_began_with_rejections_is_not_resumed(plain):
    view, file, _ = plain
    with view:
        view.update([trial(0, state="rejected", reason="too large")], running=1)
    assert file.getvalue().startswith("trial 0 rejected")


def test_a_terminal_shows_the_front_within_its_height():
    console = Console(file=io.StringIO(), width=100, height=16, force_terminal=True)
    console._environ = {"TERM": "xterm"}
    front_of_many = [trial(number, cache_bytes=number, bits=100.0 + number) for number in range(20)]
    dominated = trial(20, cache_bytes=99, bits=1.0)
    view = LiveFront(OBJECTIVES, 30, console, Clock())
    with view:
        view.update([], running=2)
        view.update([*front_of_many, dominated], running=2, note="trial 21: 30/400")
        drawn = Console(file=io.StringIO(), width=100)
        drawn.print(view._render())
    lines = drawn.file.getvalue().splitlines()
    assert len(lines) < 16
    assert "21/30" in lines[0]
    assert "21 complete, 0 rejected, 0 failed, 2 running; 20 models on the front" in lines[1]
    assert "trial 21: 30/400" in lines[2]
    assert "d16: mlp(10)" in drawn.file.getvalue()
    assert "and 15 more" in lines[-1]
    assert "\x1b[" in console.file.getvalue()


def test_the_last_table_sets_test_values_above_those_of_the_search():
    trials = [trial(0, cache_bytes=0, bits=500.0), trial(1, bits=900.0, candidate="[red]")]
    by_seed = {str(bits): {"cache_bytes": 64, "capacity.bits": float(bits)} for bits in (850, 860, 870)}
    everyone = candidates(trials, {"[red]": by_seed})
    best = tuple(front(everyone, OBJECTIVES))
    results = Results("demo", "", "", {}, OBJECTIVES, {}, 32, tuple(trials), tuple(everyone), best)
    console = Console(file=io.StringIO(), width=100)
    console.print(front_table(results))
    text = console.file.getvalue()
    assert "860 ± 25" in text
    assert "On fresh test data" in text
    assert text.index("500") < text.index("860") < text.index("900")
    assert "only in the search, not on test data" in text
