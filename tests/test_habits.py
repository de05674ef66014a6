"""What the project promises about its own upkeep: hosted CI, hooks, decisions and dependencies."""

import ast
import re
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml

from doge_lab import run

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DECISIONS = ROOT / "docs" / "decisions"


@pytest.fixture
def jobs():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]


def test_hosted_ci_runs_make_test_with_every_supported_python(jobs):
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    supported = [f"3.{minor}" for minor in range(int(low), int(high))]
    assert jobs["test"]["strategy"]["matrix"]["python"] == supported
    assert PROJECT["classifiers"] == [f"Programming Language :: Python :: {version}" for version in supported]
    assert jobs["test"]["runs-on"] == "ubuntu-latest"
    assert "make test" in [step.get("run") for step in jobs["test"]["steps"]]


def test_hosted_ci_names_actions_by_major_version_and_files_that_exist(jobs):
    steps = [step for job in jobs.values() for step in job["steps"]]
    for action in filter(None, (step.get("uses") for step in steps)):
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action), action
    named = re.findall(r"\S+\.(?:py|yaml)", " ".join(step.get("run", "") for step in steps))
    assert named
    assert all((ROOT / file).is_file() for file in named)


def test_hooks_are_all_that_make_test_asks_but_for_the_tests():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    (targets,) = re.findall(r"^test: ([a-z ]+?)(?: *##.*)?$", MAKEFILE, flags=re.MULTILINE)
    asked = [f"make {target}" for target in targets.split() if target != "tests"]
    assert [hook["entry"] for hook in repository["hooks"]] == asked


def test_make_help_tells_what_every_target_does():
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)
    told = re.findall(r"^([a-z]+):.*## \S", MAKEFILE, flags=re.MULTILINE)
    assert sorted(told) == sorted(set(phony.split()) - {"check"})  # another name of `test`


def test_decisions_are_numbered_without_holes_dated_in_order_and_listed():
    files = sorted(DECISIONS.glob("[0-9]*.md"))
    dates, rows = [], []
    for number, file in enumerate(files, 1):
        head, *sections = file.read_text(encoding="utf-8").split("\n## ")
        title, day = re.fullmatch(rf"# {number:04d}: (.+)\n\nDate: (\S+)(?: \(commit \w+\))?\n", head).groups()
        assert file.name.startswith(f"{number:04d}-")
        assert [section.partition("\n")[0] for section in sections] == ["Context", "Decision", "Consequences"]
        dates.append(date.fromisoformat(day))
        rows.append(f"| [{number:04d}]({file.name}) | {day} | {title} |")
    assert dates == sorted(dates)
    listed = (DECISIONS / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in listed if line.startswith("| [")] == rows


def test_links_of_decisions_lead_somewhere():
    for page in DECISIONS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_lab_imports_every_core_dependency_and_the_extra_hf_in_one_place_at_most():
    files = [file for folder in ("doge_lab", "blocks") for file in (ROOT / folder).rglob("*.py")]
    imported = {name for file in files for name in _tops(file)}
    module = {"pyyaml": "yaml"}
    assert {module.get(name, name) for name in _names(PROJECT["dependencies"])} <= imported
    elsewhere = {name for file in files if ROOT / "doge_lab" / "hf" not in file.parents for name in _tops(file)}
    assert not _names(PROJECT["optional-dependencies"]["hf"]) & elsewhere


def test_a_record_names_the_packages_that_are_installed():
    assert list(dict(run._installed(("torch", "a-package-that-nobody-has")))) == ["torch"]


def _names(requirements):
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def _tops(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
