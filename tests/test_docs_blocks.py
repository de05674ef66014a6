"""The page for authors of blocks: its block works outside the repository, its mistakes get the messages it shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from doge_lab.testing import CHECKS

PAGE = (Path(__file__).parent.parent / "docs" / "blocks.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.+?)```", PAGE, flags=re.DOTALL)
EXAMPLE = next(code for code in CODE if "class Average" in code)
TEST = next(code for code in CODE if "check_block" in code)
MISTAKES = {
    re.search(r"class (\w+)\(Average\)", code)[1]: code for code in CODE if "(Average)" in code and code != TEST
}
SHOWN = re.findall(r"```text\n(\w+): (.+?)\n```", PAGE)

RUN = """
import json, sys
from doge_lab import registry
from doge_lab.testing import run_checks
failed = {}
for name in sys.argv[1:]:
    ((_, block),) = registry.find(f"mixers.mistakes:{name}")
    failed[name] = [[result.name, result.message] for result in run_checks(block) if not result.passed]
print(json.dumps(failed))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files, in a folder that the repository does not know."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "mixers").mkdir()
    (folder / "mixers" / "__init__.py").touch()
    (folder / "mixers" / "average.py").write_text(EXAMPLE, encoding="utf-8")
    start = "import torch\nfrom torch import nn\n\nfrom mixers.average import Average\n\n\n"
    (folder / "mixers" / "mistakes.py").write_text(start + "\n\n".join(MISTAKES.values()), encoding="utf-8")
    (folder / "test_average.py").write_text(f"from mixers.average import Average\n\n{TEST}", encoding="utf-8")
    return folder


def python(folder, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


def test_the_example_passes_from_the_command_line(folder):
    done = python(folder, "-m", "doge_lab", "check", "mixers.average:Average", "--full", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {result["name"] for result in json.loads(done.stdout)} >= {"causal", "compiles"}


def test_the_example_passes_in_the_test_that_the_page_shows(folder):
    done = python(folder, "-m", "pytest", "-q", "test_average.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_mistakes_get_the_messages_that_the_page_shows(folder):
    done = python(folder, "-c", RUN, *MISTAKES)
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout)
    assert len(failed) == len(SHOWN) == 5
    for (name, messages), shown in zip(failed.items(), SHOWN, strict=True):
        (check, message), *others = messages
        assert (check, blurred(message)) == (shown[0], blurred(shown[1])), name
        # What was never written may or may not be finite inside a model; the last ones look at many promises at once.
        may = {"initialisation_survives_assembly", "padding_between_turns", "transplant", "declarations_are_pure"}
        assert {other for other, _ in others} <= {*may, "anywhere", "any_length", "any_option"}, name


def blurred(message):
    """Without the measured difference, which may vary with the processor in its last digit."""
    return re.sub(r"off by [\d.e-]+ ", "off by ... ", message)


def test_the_table_of_promises_is_the_one_that_runs():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (\w+) \| (\w+) \|$", PAGE, flags=re.MULTILINE)
    assert rows == [(c.name, c.promise, c.kind or "both", c.mode) for c in CHECKS.values()]
