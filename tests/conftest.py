"""Shared by all tests: one thread (two workers share two cores), and a small model file."""

import sys

import pytest
import sqlalchemy
import torch
from strange_blocks import SOURCE

torch.set_num_threads(1)

TINY_RUN = """\
model:
  d_model: 16
  layers:
    - sequence: {type: attention, n_heads: 2}
      state: mlp
tasks:
  - {type: capacity, n_entities: 32, n_values: 2, n_tokens: 16}
  - {type: recall, n_pairs: [2], length: 12, n_tokens: 16, n_eval: 64}
train: {steps: 8, batch_size: 16}
"""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Checks that a search remembers are remembered for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOGE_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _studies_need_no_disk():
    """A study of this process is not waited for until it is on the disk: hundreds of small commits take minutes."""

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
    def relax(connection, _):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture
def run_file(tmp_path):
    """A run that trains in a fraction of a second."""
    path = tmp_path / "tiny_run.yaml"
    path.write_text(TINY_RUN)
    return path


@pytest.fixture(scope="session")
def _cache_of_few_checks(tmp_path_factory):
    return str(tmp_path_factory.mktemp("few"))


@pytest.fixture
def in_process(monkeypatch, _cache_of_few_checks):
    """Searches train in this process; of a block's checks a few are run, of its trained models all."""
    from tiny_search import InProcess, few_checks

    monkeypatch.setenv("DOGE_LAB_CACHE", _cache_of_few_checks)
    monkeypatch.setattr("doge_lab.testing.run_checks", few_checks)
    monkeypatch.setattr("doge_lab.search.coordinator.Pool", InProcess)
    monkeypatch.setattr("doge_lab.engine.auditor.require_blocks", lambda run, **_: None)


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """The badly behaved blocks, importable and consented to: `strange("Raises")` is what a file would say."""
    from doge_lab import registry

    sys.modules.pop("strange", None)
    (tmp_path / "strange.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_allowed_packages", {"strange"})
    yield lambda name, **options: {"type": f"strange:{name}", **options}
    sys.modules.pop("strange", None)
