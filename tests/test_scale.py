"""Does the small predict the large: the same candidates grow evenly, and orders are compared as they should be."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from doge_lab.cli import main
from doge_lab.experiment.candidates import spread
from doge_lab.report.scale import scale_lines
from doge_lab.scale.agreement import arm_name, facts_of
from doge_lab.scale.sizes import at_size
from doge_lab.stats import agreement

RUN = {
    "model": {"d_model": 32, "layers": [{"repeat": 2, "sequence": "attention", "state": "glu"}]},
    "tasks": [
        {"type": "capacity", "n_entities": 500, "n_name_tokens": 3},
        {"type": "recall", "n_pairs": [4], "train": {"steps": 70}},
    ],
    "train": {"steps": 100, "batch_size": 50},
}
EXPERIMENT = """\
base:
  model: {d_model: 16, layers: [{sequence: {type: attention, n_heads: 2}, state: mlp}]}
  tasks: [{type: capacity, n_entities: 32, n_values: 2, n_tokens: 16}]
  train: {steps: 10, batch_size: 16}
arms:
  attention: {}
  no perceptron: {model.layers.0.state: none}
protocol: {lr: [0.01], seeds: 2}
"""


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"match": {"params": 30_000}},
        {"match": {"active_params": 20_000}},
        {"model": {**RUN["model"], "layers": [{"sequence": "attention", "state": {"type": "mlp", "d_hidden": 100}}]}},
        {"model": {**RUN["model"], "layers": [{"repeat": 3, "sequence": "attention", "state": "none"}]}},
    ],
    ids=str,
)
def test_a_run_grows_evenly(change):
    written = {**RUN, **change}
    small, large = at_size(written, 1), at_size(written, 4)
    assert large.cost().params == pytest.approx(4 * small.cost().params, rel=0.08)  # widths of heads are coarse
    assert large.model.d_model > small.model.d_model
    capacity, recall = large.tasks
    assert capacity.n_entities == 2000
    assert large.train_config(capacity).steps == 400  # as many exposures
    assert large.train_config(recall).steps == 70
    assert recall == small.tasks[1]


@pytest.mark.parametrize("size", [{"exposures": 10, "batch_size": 50}, {"steps": 100, "batch_size": 50}])
def test_exposures_stay_whatever_they_were_said_in(size):
    tasks = [{"type": "capacity", "n_entities": 500, "n_name_tokens": 3}]
    large = at_size({**RUN, "tasks": tasks, "train": size}, 2)
    (capacity,) = large.tasks
    assert large.train_config(capacity).steps == 200


def test_a_size_that_cannot_be_is_one_line(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(EXPERIMENT)
    assert main(["scale", str(path), "--factors", "1", "50", "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "attention at 50 times its size" in said  # 1,600 entities have no different names
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--factors", "2"], "need two different sizes from 1 to 1000, not 2.0"),
        (["--factors", "0.5", "2"], "from 1 to 1000"),
        (["--factors", "1", "nan"], "from 1 to 1000"),
        (["--factors", "1", "1.00000001"], "need two different sizes"),
        (["--candidates", "1"], "must be between 2 and 1,000, not 1"),
    ],
)
def test_words_that_cannot_be(tmp_path, capsys, words, message):
    path = tmp_path / "mine.yaml"
    path.write_text(EXPERIMENT)
    assert main(["scale", str(path), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_search_is_refused(tmp_path, capsys):
    assert main(["scale", str(tmp_path)]) == 2
    assert "holds no study.db" in capsys.readouterr().err


def test_an_experiment_is_scaled(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(EXPERIMENT)
    words = ["scale", str(path), "--factors", "1", "2", "--workers", "1", "--out", str(tmp_path / "o"), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [size["name"] for size in facts["sizes"]] == ["1x", "2x"]
    assert facts["sizes"][1]["params"] == pytest.approx(2 * facts["sizes"][0]["params"], rel=0.05)
    found = facts["tasks"]["capacity"]
    assert found["n"] == 2
    assert -1 <= found["low"] <= found["high"] <= 1
    assert set(found["order"]) == {"1x", "2x"}
    assert json.loads((tmp_path / "o" / "scale.json").read_text())["tasks"] == facts["tasks"]


def cell(*bits, diverged=False):
    found = [{"bits": value, "max_bits": 100.0} for value in bits]
    seeds = [{"seed": index, "metrics": metrics, "diverged": False} for index, metrics in enumerate(found)]
    return {"tasks": {"t": {"seeds": seeds + ([{"seed": 7, "metrics": None, "diverged": True}] if diverged else [])}}}


def result(**bits_by_size):
    """bits_by_size: candidate -> its bits by seed, at 1x and at 2x."""
    arms = [
        {"name": arm_name(name, size), "cost": {"params": 10}, **cell(*bits)}
        for name, sizes in bits_by_size.items()
        for size, bits in zip(("1x", "2x"), sizes, strict=True)
    ]
    return {"tasks": ["t"], "arms": arms}


def test_a_candidate_that_failed_somewhere_is_left_out():
    facts = facts_of(result(a=([1], [5]), b=([2], [6]), c=([3], [])), ["a", "b", "c"], [1, 2])
    found = facts["tasks"]["t"]
    assert (found["tau"], found["n"], found["low"]) == (1.0, 2, None)
    assert found["order"]["1x"] == ["b", "a"]
    (line,) = scale_lines(facts)
    assert "over 2 candidates (one seed, no interval)" in line


def test_what_all_know_by_heart_has_no_order():
    full = {"a": ([99.8, 99.9], [99.7, 99.8]), "b": ([99.9, 99.8], [99.9, 99.9]), "c": ([50, 51], [60, 61])}
    found = facts_of(result(**full), ["a", "b", "c"], [1, 2])["tasks"]["t"]
    assert (found["tau"], found["low"], found["high"]) == (1.0, 1.0, 1.0)
    assert found["chance"] == pytest.approx(1 / 3)  # of three orders that can be told apart
    alone = facts_of(result(a=full["a"], b=full["b"]), ["a", "b"], [1, 2])["tasks"]["t"]
    assert (alone["tau"], alone["chance"]) == (0.0, None)


def test_where_nothing_is_left_no_order_is_claimed():
    facts = facts_of(result(a=([1], []), b=([2], [])), ["a", "b"], [1, 2])
    assert facts["tasks"]["t"]["tau"] is None
    assert "no order to compare" in scale_lines(facts)[0]


def test_equal_orders_agree_and_opposite_ones_do_not():
    table = [[1.0, 1.1, 0.9], [2.0, 2.1, 1.9], [3.0, 3.1, 2.9], [4.0, 4.1, 3.9]]
    same, reverse = agreement(table, table), agreement(table, table[::-1])
    assert same[:4] == (1.0, 1.0, 1.0, 4)
    assert same.chance == pytest.approx(1 / 24)  # of the orders of four
    assert reverse[:3] == (-1.0, -1.0, -1.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=2), min_size=2, max_size=5), st.integers(0, 99))
def test_tau_is_symmetric_and_bounded(table, seed):
    other = np.random.default_rng(seed).normal(size=(len(table), 2)).tolist()
    there, back = agreement(table, other, draws=20), agreement(other, table, draws=20)
    assert there.tau == pytest.approx(back.tau)
    assert -1 <= there.low <= there.high <= 1


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("alike", [1.0, 0.8, 0.0])
def test_the_interval_holds_the_tau_of_the_true_means(noise, alike):
    """What docs/experiments.md says of five candidates and three seeds: in 95 % or more of the cases."""
    draw = np.random.default_rng(0)
    hits = []
    for _ in range(150):
        small = draw.normal(size=(5, 1))
        large = alike * small + np.sqrt(1 - alike**2) * draw.normal(size=(5, 1))
        true = agreement(small.tolist(), large.tolist()).tau
        found = agreement(*((means + noise * draw.normal(size=(5, 3))).tolist() for means in (small, large)), draws=300)
        hits.append(found.low - 1e-9 <= true <= found.high + 1e-9)
    assert np.mean(hits) >= 0.95


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=6))
def test_tau_is_kendalls(pairs):
    first, second = ([[float(value)] for value in side] for side in zip(*pairs, strict=True))
    expected = scipy_stats.kendalltau(first, second).statistic
    assert agreement(first, second).tau == pytest.approx(expected if np.isfinite(expected) else 0.0)


def test_candidates_are_taken_evenly_from_the_front():
    assert spread(range(9), 3) == [0, 4, 8]
    assert spread(range(2), 5) == [0, 1]
