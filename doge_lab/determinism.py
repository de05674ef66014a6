"""Random numbers from a seed; deterministic arithmetic for one run on a GPU, and which operations have none.

PyTorch warns of each such operation at each call; here they are collected, for the run's record to name once.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_OPERATION = re.compile(
    r"(.+?) (?:does not have a deterministic implementation|defaults to a non-deterministic algorithm)"
    r"|Deterministic behavior was enabled"
)


def seed_torch(seed: int) -> None:
    """Set PyTorch's generators, of the CPU and of the GPUs in use.

    `torch.manual_seed` draws the same numbers, but writes down where it was called from for every backend that is not
    there: 3 ms in a deep stack, more than a small model's training step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def deterministic(device: torch.device) -> Iterator[list[str]]:
    """Inside, what runs on `device` is deterministic where PyTorch can; afterwards the process is as it was.

    Yields the names of the operations that are not, complete when the block ends.
    """
    found: list[str] = []
    if device.type != "cuda":  # there is nothing to choose on a CPU
        yield found
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("default", message=_OPERATION.pattern)  # once for each place, not at each call
            yield found
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    others = _sorted_out([str(warning.message) for warning in caught], found)
    for warning in caught:
        if str(warning.message) in others:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _sorted_out(messages: list[str], found: list[str]) -> set[str]:
    """Puts the operations that have no deterministic form into `found`; returns the other messages."""
    others = set()
    for message in messages:
        operation = _OPERATION.match(message)
        if operation is None:
            others.add(message)
        elif (name := operation[1] or "CuBLAS") not in found:
            found.append(name)
    return others
