"""What the report is made of: figures of the study, counts, labels, axes, intervals, files."""

import math
import os

import plotly.graph_objects as go
import pytest
from fake_search import make_results, run_config

from doge_lab.cost import cost_of
from doge_lab.files import write_text_atomically
from doge_lab.model import ModelConfig
from doge_lab.report.axes import axis
from doge_lab.report.frame import panel_html
from doge_lab.report.labels import model_label
from doge_lab.report.models import model_facts
from doge_lab.report.panel import Panel
from doge_lab.report.study import study_panels
from doge_lab.search.front import Trial
from doge_lab.strict import validate


def test_importance_is_about_the_best_trials_whatever_the_direction(tmp_path):
    """`top` alone makes a trial one of the best, `bottom` one of the worst."""
    trials = []
    for i in range(40):
        top, bottom = ("a" if i % 10 == 0 else "b"), ("a" if i % 10 == 5 else "b")
        value = 100.0 * (top == "a") - 100.0 * (bottom == "a") + i / 40
        trials.append(Trial(i, "complete", str(i), params={"top": top, "bottom": bottom}, values={"t.bits": value}))
    for direction, decisive in (("maximize", "top"), ("minimize", "bottom")):
        results = make_results(tmp_path / direction, trials, {"t.bits": direction})
        bars = study_panels(results)[1].figure.data[0]
        assert bars.y[-1] == decisive
        assert bars.x[-1] > 0.9


def test_the_cache_curve_is_what_the_cost_model_counts():
    run = run_config(kv=1, width=30)
    facts = model_facts({**run.dump(), "model": {**run.model.model_dump(mode="json"), "vocab_size": None}}, context=33)
    assert {1, 33, 65536} <= facts.cache_bytes.keys()
    for context in (1, 33, 4096):
        assert facts.cache_bytes[context] == cost_of(run.model, context).cache_bytes
    assert "nowhere" in model_facts({"model": {"d_model": 8, "layers": [{"sequence": "nowhere"}]}}, 8).problem


def test_no_text_in_a_figure_ends_its_script():
    figure = go.Figure(layout={"title": "</script><script>alert(1)</script>", "height": 100})
    shown = panel_html(Panel("any", "</h2>", "</figcaption>", figure))
    assert shown.count("</script") == shown.count("</h2>") == shown.count("</figcaption>") == 1
    assert "alert(1)" in shown


def test_zero_has_a_place_on_a_logarithmic_axis():
    sizes = axis("bytes", [0, 96, 4096], in_bytes=True)
    assert sizes.layout["type"] == "log"
    assert 0 < sizes.place(0) < sizes.place(96) == 96
    shown = dict(zip(sizes.layout["tickvals"], sizes.layout["ticktext"], strict=True))
    assert shown[sizes.place(0)] == "0"
    assert shown[4096] == "4 KiB"
    low, high = sizes.layout["range"]
    assert low < math.log10(sizes.place(0)) < math.log10(4096) < high
    assert "type" not in axis("bits", [-1, 96, 4096]).layout


def test_a_label_names_what_differs_from_the_defaults():
    attention = {"type": "attention", "n_heads": 4, "n_kv_heads": 1, "qk_norm": True}
    layers = [
        {"sequence": "none", "state": "mlp"},
        {"sequence": attention, "state": {"type": "mlp", "d_hidden": 67}, "repeat": 2},
        {"sequence": attention, "state": {"type": "mlp", "d_hidden": 67}},
        {"sequence": "none", "state": "none"},
    ]
    model = {"d_model": 32, "layers": layers, "residual": "scaled"}
    expected = "d32: mlp | 3 × attention(n_kv_heads=1, qk_norm=True)+mlp(67) | none (residual=scaled)"
    assert model_label({"model": model}) == expected
    assert model_label({"model": validate(ModelConfig, model).model_dump(mode="json")}) == expected
    assert model_label({}) == "(no configuration)"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    write_text_atomically(path, "one\r\n")
    assert path.read_bytes() == b"one\r\n"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomically(path, "two")
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"one\r\n"


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
