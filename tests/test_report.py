"""The report: one page without network, files that other programs read, and nothing claimed that was not measured."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from fake_search import THREE, complete, make_results, some_trials

from doge_lab import config
from doge_lab.report import write_report
from doge_lab.report.labels import model_label
from doge_lab.search.front import Trial, candidates, front

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


class Page(HTMLParser):
    """What a browser would see: elements, readable text, and the figures' data."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.ids, self.figures, self.words, self._open = [], set(), [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.elements.append((tag, given))
        self.ids.add(given.get("id"))
        self._open = "figure" if given.get("type") == "application/json" else tag

    def handle_data(self, data):
        if self._open == "figure" and data.strip():
            self.figures.append(json.loads(data))
        elif self._open not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag):
        self._open = ""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of three objectives: name of a file -> its path, with the results it was made of."""
    directory = tmp_path_factory.mktemp("search")
    results = make_results(directory, some_trials())
    return results, write_report(results, directory)


@pytest.fixture
def light(monkeypatch):
    """Pages without the five megabytes of plotly.js, which one test looks at."""
    monkeypatch.setattr("doge_lab.report.frame.get_plotlyjs", lambda: "var Plotly = {};")


def test_the_page_needs_no_network(written):
    page = Page(written[1]["report.html"])
    fetching = ("script", "link", "img", "iframe", "source", "video")
    assert not [given for tag, given in page.elements if tag in fetching and ("src" in given or "href" in given)]
    assert all(not re.match(r"\w+:", given["href"]) for tag, given in page.elements if tag == "a")
    assert "default-src 'none'" in page.source
    assert page.source.count("plotly.js v") == 1


def test_every_figure_is_drawn(written):
    page = Page(written[1]["report.html"])
    panels = {"figure-front", "figure-cache", "figure-history", *(f"figure-importance-{i}" for i in range(3))}
    assert panels <= page.ids
    assert len(page.figures) == len(panels)
    assert all(figure["data"] for figure in page.figures)
    assert "cache bytes per sequence at 32 tokens, bf16" in page.figures[0]["layout"]["xaxis"]["title"]["text"]


def test_a_card_tells_what_the_model_is_and_how_to_build_it(written):
    results, files = written
    page = Page(files["report.html"])
    for candidate in results.front:
        assert f"trial-{candidate.number}" in page.ids
        assert f"doge-lab train front/trial-{candidate.number}.yaml --out" in page.text
        assert model_label(candidate.trials[0].config) in page.text
    for said in ("bits per parameter", "recall, accuracy", "embedding parameters", "FLOPs per token", "saturated"):
        assert said in page.text
    assert "the loss is nan at step 3" in page.text
    assert "12 bits of recall" in page.text
    assert "recall, exposures" not in page.text


def test_one_seed_is_said_to_be_one_seed(written):
    page = Page(written[1]["report.html"])
    assert "Every value of the search is from one seed" in page.text
    assert "±" not in page.text
    assert "None was repeated on test data" in page.text


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("seeds", [1, 3])
def test_values_on_test_data_stand_beside_those_of_the_search(tmp_path, seeds):
    trials = some_trials()
    best = front(candidates(trials, {}), THREE)[0]
    again = [{"cache_bytes": 0.0, "capacity.bits": 1000.0 + 10 * seed, "recall.bits": 2.0} for seed in range(seeds)]
    confirmed = {best.trials[0].candidate: {str(1000 + seed): values for seed, values in enumerate(again)}}
    results = make_results(tmp_path, trials, confirmed=confirmed, study=False)
    files = write_report(results, tmp_path)
    page = Page(files["report.html"])
    assert "On fresh test data" in page.text
    assert ("test 1,010 ± 25" in page.text) == (seeds == 3)
    assert ("test ≈1,000 " in page.text and "one seed, no interval" in page.text) == (seeds == 1)
    entry = next(e for e in json.loads(files["front.json"].read_text()) if e["trial"] == best.number)
    assert entry["confirmed"] == [{"seed": 1000 + index, **values} for index, values in enumerate(again)]


@pytest.mark.usefixtures("light")
def test_several_seeds_make_one_candidate_with_an_interval(tmp_path):
    trials = [complete(i, kv=1, width=30, seed=i) for i in range(3)]
    files = write_report(make_results(tmp_path, trials, study=False), tmp_path)
    (entry,) = json.loads(files["front.json"].read_text())
    assert entry["seeds"] == 3
    assert [values["seed"] for values in entry["all_values"]] == [0, 1, 2]
    assert "1 candidate with 3 seeds" in Page(files["report.html"]).text


def test_names_from_files_are_escaped(tmp_path, written):
    trials = some_trials()
    layers = [{"sequence": {"type": HOSTILE, HOSTILE: 1}, "state": "none"}]
    bad = complete(14, kv=2, width=60)
    params = {HOSTILE: "a"}
    trials.append(Trial(14, "complete", "bad", 0, params, {"model": {"d_model": 16, "layers": layers}}, bad.values))
    trials.append(Trial(15, "failed", reason=HOSTILE))
    results = make_results(tmp_path, trials, name=HOSTILE)
    assert any(candidate.number == 14 for candidate in results.front)
    page, tame = Page(write_report(results, tmp_path)["report.html"]), Page(written[1]["report.html"])
    assert "<script>alert" not in page.source
    count = {tag: sum(element == tag for element, _ in page.elements) for tag in ("script", "img")}
    assert count == {"script": sum(element == "script" for element, _ in tame.elements), "img": 0}
    assert not [name for _, given in page.elements for name in given if name.startswith("on")]
    hovers = [text for trace in page.figures[0]["data"] for text in trace.get("customdata", [])]
    assert any("&lt;script&gt;" in text[0] for text in hovers)


def test_front_json_holds_what_a_program_needs(written):
    results, files = written
    entries = json.loads(files["front.json"].read_text())
    assert [entry["trial"] for entry in entries] == [candidate.number for candidate in results.front]
    for entry, candidate in zip(entries, results.front, strict=True):
        assert {"values", "config", "seeds", "all_values", "confirmed", "cost", "rebuild"} <= entry.keys()
        assert entry["values"] == {name: candidate.values[name] for name in THREE}
        assert entry["seeds"] == 1


def test_trials_csv_has_a_row_per_trial(written):
    results, files = written
    with files["trials.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == [trial.state for trial in results.trials]
    assert float(rows[3]["capacity.bits"]) == results.trials[3].values["capacity.bits"]
    assert rows[12]["reason"] == "params is 9,999, over\nthe budget"
    assert rows[12]["cache_bytes"] == ""
    assert (rows[4]["param.kv"], rows[4]["cost.params"]) == ("1", str(results.trials[4].cost["params"]))


def test_the_run_files_are_what_the_search_ran(written):
    results, files = written
    for candidate in results.front:
        path = files[f"front/trial-{candidate.number}.yaml"]
        assert yaml.safe_load(path.read_text()) == candidate.trials[0].config
        assert config.load(path).dump() == candidate.trials[0].config


@pytest.mark.usefixtures("light")
def test_run_files_follow_the_front(tmp_path):
    trials = some_trials()
    results = make_results(tmp_path, trials, study=False)
    (tmp_path / "front").mkdir()
    for name in ("trial-999.yaml", "trial-mine.yaml"):
        (tmp_path / "front" / name).write_text("kept: maybe")
    write_report(results, tmp_path)
    found = {path.name for path in (tmp_path / "front").iterdir()}
    assert found == {"trial-mine.yaml", *(f"trial-{candidate.number}.yaml" for candidate in results.front)}


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.usefixtures("light")
def test_any_number_of_objectives(tmp_path, count):
    names = ["capacity.bits"] if count == 1 else ["cache_bytes", "capacity.bits", "recall.bits", "params"][:count]
    objectives = {name: "maximize" if "." in name else "minimize" for name in names}
    results = make_results(tmp_path, some_trials(), objectives)
    page = Page(write_report(results, tmp_path)["report.html"])
    assert len(page.figures) == 3 + count
    assert ("hypervolume" in page.source) == (count > 1)
    assert ("Not drawn: parameters." in page.text) == (count == 4)


@pytest.mark.usefixtures("light")
def test_an_empty_front_is_said_plainly(tmp_path):
    trials = [Trial(0, "rejected", reason="too large"), Trial(1, "failed", reason="the loss is nan")]
    files = write_report(make_results(tmp_path, trials), tmp_path)
    page = Page(files["report.html"])
    assert "No trial is complete" in page.text
    assert "the loss is nan" in page.text
    assert not page.figures
    assert json.loads(files["front.json"].read_text()) == []


@pytest.mark.usefixtures("light")
def test_one_trial_makes_a_report(tmp_path):
    page = Page(write_report(make_results(tmp_path, [complete(0, kv=1, width=30)]), tmp_path)["report.html"])
    assert "1 of 1 candidate is on the front" in page.text
    assert "needs 10 complete trials to tell; there is 1." in page.text


@pytest.mark.usefixtures("light")
def test_a_missing_study_costs_only_its_figures(tmp_path):
    results = make_results(tmp_path, some_trials(), study=False)
    page = Page(write_report(results, tmp_path)["report.html"])
    assert "is missing" in page.text
    assert len(page.figures) == 2
    assert not (tmp_path / "study.db").exists()


def test_importing_the_report_imports_no_torch():
    code = "import sys, doge_lab.report.page, doge_lab.report.live; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
