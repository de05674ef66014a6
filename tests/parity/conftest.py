"""Shared by the parity tests."""

from contextlib import nullcontext

import pytest

from doge_lab.ops.dispatch import REFERENCE, using
from doge_lab.ops.expert_mlps import expert_mlps


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
