"""What of a front may be chance: neighbours told apart or not, models that test data put behind others, the way out."""

import json
from dataclasses import replace

import pytest
from fake_search import THREE, complete, make_results

from doge_lab.report import write_report
from doge_lab.report.files import front_json
from doge_lab.report.honesty import at_scale, honesty
from doge_lab.report.labels import chance, rough, spread
from doge_lab.report.page import page
from doge_lab.report.pairs import dominators, pairs, warnings
from doge_lab.search.front import Results

CHEAP, GOOD, CLOSE = 0, 1, 2
"""Three trials of a front, by their number: the costlier, the better."""


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr("doge_lab.report.frame.get_plotlyjs", lambda: "var Plotly = {};")


def searched(tmp_path, fresh, objectives=THREE, **changes) -> Results:
    """A front of three; `fresh`: trial -> (knowledge, recall) on test data, one pair per seed."""
    trials = []
    for number, (cost, knowledge, recall) in enumerate([(64, 1000.0, 20.0), (128, 2000.0, 30.0), (256, 2010.0, 31.0)]):
        values = {"cache_bytes": float(cost), "capacity.bits": knowledge, "recall.bits": recall}
        trials.append(replace(complete(number, kv=1, width=20 + number), values=values))
    confirmed = {
        trials[number].candidate: {
            str(1000 + seed): {**trials[number].values, "capacity.bits": knowledge, "recall.bits": recall}
            for seed, (knowledge, recall) in enumerate(by_seed)
        }
        for number, by_seed in fresh.items()
    }
    return replace(make_results(tmp_path, trials, objectives, confirmed, study=False), **changes)


APART = {
    CHEAP: [(1000.0, 20.0), (1010.0, 20.5), (990.0, 19.0)],
    GOOD: [(2000.0, 30.0), (2012.0, 30.2), (1985.0, 29.5)],
    CLOSE: [(2010.0, 30.4), (1990.0, 29.9), (2020.0, 30.1)],
}
ONE_SEED = {number: by_seed[:1] for number, by_seed in APART.items()}


def test_neighbours_are_told_apart_where_their_seeds_agree(tmp_path):
    found = [pair for pair in pairs(searched(tmp_path, APART)) if pair.objective == "capacity.bits"]
    assert [(pair.first.number, pair.second.number) for pair in found] == [(CLOSE, GOOD), (GOOD, CHEAP)]
    close, far = (pair.compared for pair in found)
    assert far.told_apart
    assert far.difference.mean == pytest.approx(999.0)
    assert not close.told_apart
    assert 0.5 < close.probability < 0.95
    assert close.seeds_needed > 3


def test_a_counted_objective_is_not_compared(tmp_path):
    assert {pair.objective for pair in pairs(searched(tmp_path, APART))} == {"capacity.bits", "recall.bits"}
    counted = {"cache_bytes": "minimize", "params": "minimize"}
    results = make_results(tmp_path, [complete(0, kv=1, width=20), complete(1, kv=2, width=30)], counted, study=False)
    assert pairs(results) == warnings(results) == []


def test_a_minimised_objective_is_ordered_by_its_smallest(tmp_path):
    results = searched(tmp_path, APART, {"cache_bytes": "minimize", "capacity.bits": "minimize"})
    assert [candidate.number for candidate in results.front] == [CHEAP]
    (first, *_), everyone = pairs(replace(results, front=results.candidates)), results.candidates
    assert first.first is everyone[CHEAP]
    assert first.compared.difference.mean > 0


def test_one_seed_tells_nothing_and_the_way_out_is_said(tmp_path):
    results = searched(tmp_path, ONE_SEED)
    (line,) = warnings(results)
    assert line.startswith("One seed for each model: no two of them can be told apart")
    assert line.endswith(f"{tmp_path}/space.yaml --out {tmp_path} --set search.confirm_seeds=3 --resume")
    shown = page(results)
    assert "<b>One seed for each model: no two of them can be told apart, and neighbours may swap places.</b>" in shown
    assert "doge-lab search ./space.yaml --out . --set search.confirm_seeds=3 --resume</code>" in shown
    assert "probability of this order" not in shown
    assert page(replace(results, seed=7)).count("--resume --seed 7</code>") == 1
    (line,) = warnings(searched(tmp_path, {}))
    assert line.startswith("Nothing was repeated on test data: no two models can be told apart")


def test_the_page_and_the_terminal_say_what_may_be_chance(tmp_path):
    results = searched(tmp_path, APART)
    lines = warnings(results)
    assert lines[-1].endswith("--set search.confirm_seeds=N --resume")
    assert any(line.startswith("knowledge, bits: trial 2 and trial 1 cannot be told apart, the") for line in lines)
    assert not any("trial 0" in line for line in lines if line.startswith("knowledge"))
    shown = page(results)
    assert '<b class="fault">no</b>; about' in shown
    assert "<td>yes</td>" in shown
    assert "confirm_seeds=N --resume</code>" in shown


def test_a_model_that_was_not_repeated_is_named(tmp_path):
    results = searched(tmp_path, {CHEAP: APART[CHEAP], GOOD: APART[GOOD]})
    assert "trial 2: not measured on fresh test data" in warnings(results)
    assert "Trial 2 has no value on test data." in page(results)


def test_equal_on_every_seed_is_no_order(tmp_path):
    lines = warnings(searched(tmp_path, {**APART, CLOSE: APART[GOOD]}))
    assert "knowledge, bits: trial 1 and trial 2 cannot be told apart; they are equal on every seed" in lines


BEHIND = {**APART, CLOSE: [(1500.0, 25.0), (1520.0, 24.0), (1490.0, 25.5)]}


@pytest.mark.parametrize("fresh", [BEHIND, {number: by_seed[:1] for number, by_seed in BEHIND.items()}])
def test_a_model_that_test_data_put_behind_another_is_marked(tmp_path, fresh):
    results = searched(tmp_path, fresh)
    (cheap, good, close) = results.front
    assert [other.number for other, _ in dominators(close, results)] == [GOOD]
    assert dominators(cheap, results) == dominators(good, results) == []
    several = len(fresh[CLOSE]) > 1
    said = "robably dominated on test data by trial 1 (probability" if several else "by one seed, by trial 1"
    assert page(results).count(said) == 2  # in the table and on its card
    assert any(line.startswith("trial 2: ") and said in line for line in warnings(results))
    entry = json.loads(front_json(results))[-1]
    (by,) = entry["dominated_on_test_by"]
    assert by["trial"] == GOOD
    assert (by["probability"] is None) == (not several)


def test_who_costs_less_is_not_dominated_by_luck(tmp_path):
    worse = {**APART, CHEAP: [(10.0, 1.0), (11.0, 1.1), (9.0, 0.9)]}
    results = searched(tmp_path, worse)
    assert dominators(results.front[CHEAP], results) == []


def test_front_json_holds_every_comparison_once(tmp_path):
    results = searched(tmp_path, APART)
    told = [pair for entry in json.loads(front_json(results)) for pair in entry["pairs"]]
    assert len(told) == 4
    for pair in told:
        assert set(pair) == {
            *("objective", "first", "second", "difference", "probability", "told_apart", "seeds_needed")
        }
        assert set(pair["difference"]) == {"mean", "half", "n"}


def test_the_figure_shows_test_values_with_their_intervals(tmp_path):
    from doge_lab.report.figures import front_panel

    results = searched(tmp_path, APART)
    traces = {trace.name: trace for trace in front_panel(results).figure.data}
    shown = traces["on the front (3), on test data"]
    assert list(shown.y) == pytest.approx([1000.0, 1999.0, 2006.6667])
    assert all(half > 0 for half in shown.error_y.array)
    assert front_panel(searched(tmp_path, ONE_SEED)).figure.data[-1].error_y.array is None


def test_what_one_seed_measured_is_not_written_to_the_last_digit():
    assert (spread([36_722.4]), spread([0.12345])) == ("≈36,700", "≈0.123")
    assert [rough(value) for value in (999.96, 51.8, -3.0, 0.0, 850.0)] == ["1,000", "51.8", "-3.00", "0.00", "850"]
    assert spread([20.0, 20.0]) == "20 ± 0"
    assert (chance(0.999), chance(0.94)) == ("above 0.99", "0.94")


def test_the_list_of_doubts_names_the_rate_the_table_and_the_guesser(tmp_path):
    results = searched(tmp_path, APART)
    said = " ".join(honesty(results))
    assert "One learning rate served all architectures" in said
    assert "<b>knowledge is saturated</b> in 3 of 3 models" in said
    assert "than a guesser" not in said
    assert "exact, at 32 tokens of context" in said
    drawn = replace(results, space={"train": {"lr": {"float": [0.001, 0.1], "log": True}}})
    assert "Learning rates were drawn with the architectures" in " ".join(honesty(drawn))
    forgetful = searched(tmp_path, {**APART, CHEAP: [(-1.0, 11.0)] * 3})
    said = " ".join(honesty(forgetful))
    assert (
        "1 of 3 models of the front earned no more bits of recall than a guesser who knows which answers occur" in said
    )
    assert "no more bits of knowledge than chance (0 bits)" in said


SIZES = [{"name": "small", "params": 26_000}, {"name": "large", "params": 1_000_000}]
TAU = {"tau": 0.6, "low": 0.2, "high": 1.0, "n": 9, "chance": 0.02}


def test_the_order_at_a_larger_size_is_told_where_it_was_measured(tmp_path):
    results = searched(tmp_path, APART)
    (line,) = at_scale(results)
    assert "has not been measured" in line
    assert line.endswith(f"doge-lab scale {tmp_path}")
    (tmp_path / "scale.json").write_text(json.dumps({"sizes": SIZES, "tasks": {"capacity": TAU}}))
    (line,) = at_scale(results)
    assert line.startswith(
        "In larger models: knowledge, 26,000 and 1,000,000 parameters: Kendall's tau 0.60 over 9 candidates"
    )
    assert "0.20 to 1.00" in line
    assert "Kendall" in page(results)


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"sizes": [',
        "[]",
        "null",
        "3",
        json.dumps({"sizes": SIZES, "tasks": {}}),
        json.dumps({"sizes": [], "tasks": {"capacity": TAU}}),
        json.dumps({"sizes": SIZES, "tasks": {"capacity": {**TAU, "n": None}}}),
        json.dumps({"sizes": SIZES, "tasks": {"capacity": {**TAU, "low": float("nan")}}}),
        json.dumps({"sizes": SIZES, "tasks": {"capacity": 1}}),
        json.dumps({"sizes": SIZES, "tasks": {"capacity": TAU}}).replace("9,", "1e999,"),
        json.dumps({"sizes": ["a", "b"], "tasks": [TAU]}),
    ],
)
def test_a_torn_scale_file_is_as_good_as_none(tmp_path, content):
    (tmp_path / "scale.json").write_text(content)
    (line,) = at_scale(searched(tmp_path, APART))
    assert "has not been measured" in line


def test_the_space_lies_beside_the_page(tmp_path):
    files = write_report(searched(tmp_path, APART), tmp_path)
    assert files["space.yaml"].read_text() == "model:\n  d_model: 16\n"
    assert 'href="space.yaml"' in files["report.html"].read_text()
