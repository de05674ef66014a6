"""Shared by the parity tests. Comparisons with transformers are skipped where it is absent; `dev` installs it."""

import importlib.util
from contextlib import nullcontext

import pytest

from doge_lab.ops.dispatch import REFERENCE, using
from doge_lab.ops.expert_mlps import expert_mlps

MISSING = importlib.util.find_spec("transformers") is None


@pytest.fixture(params=["fast", REFERENCE])
def form(request):
    """Ops in the form that is fast, and in their reference form."""
    with using(REFERENCE) if request.param == REFERENCE else nullcontext():
        yield request.param


@pytest.fixture(params=expert_mlps.forms)
def experts_computed(request):
    """Routed perceptrons side by side, and one after the other."""
    with using(request.param, expert_mlps):
        yield request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from _skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from _skipping())


def _skipping():
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if MISSING and (error.name or "").partition(".")[0] == "transformers":
            pytest.skip("transformers is not installed: pip install -c constraints.txt -e '.[hf]'")
        raise
