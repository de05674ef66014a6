"""House rules that a machine can hold."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    file for folder in ("doge_lab", "blocks", "tests", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_small(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_both_readmes_count_the_blocks_that_exist():
    shelf = {
        kind: {file.stem for file in (ROOT / "blocks" / kind).glob("*.py")} - {"__init__", "none"}
        for kind in ("sequence", "state")
    }
    for readme in ("README.md", "README_zh.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        for kind, names in shelf.items():
            assert re.findall(rf"^  {kind}/ +(\d+) ", text, flags=re.MULTILINE) == [str(len(names))], readme


def test_links_in_the_docs_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_snippet_and_model_run(tmp_path, capsys):
    from doge_lab.cli import main

    for readme in ("README.md", "README_zh.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        (snippet,) = re.findall(r"```python\n(.+?)```", text, flags=re.DOTALL)
        exec(compile(snippet, readme, "exec"), {})
        (model,) = re.findall(r"```yaml\n(.+?)```", text, flags=re.DOTALL)
        (tmp_path / "model.yaml").write_text(model, encoding="utf-8")
        assert main(["describe", str(tmp_path / "model.yaml"), "--context", "2048", "--measure", "--json"]) == 0
    assert capsys.readouterr().out.count("cache_bytes_held") == 2
