"""A comparison with transformers is skipped where transformers is not installed; the extra `dev` installs it."""

import importlib.util

import pytest

MISSING = importlib.util.find_spec("transformers") is None


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
