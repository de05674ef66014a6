"""Shared by the parity tests."""

from contextlib import nullcontext

import pytest

from doge_lab.ops.dispatch import REFERENCE, using


@pytest.fixture(params=["fast", REFERENCE])
def form(request):
    """Ops in the form that is fast, and in their reference form."""
    with using(REFERENCE) if request.param == REFERENCE else nullcontext():
        yield request.param
