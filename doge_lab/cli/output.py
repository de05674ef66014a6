"""Standard output that every terminal, file and pipe can take."""

import io
import os
import sys


def accept_any_text() -> None:
    """Print a question mark for what the output's encoding lacks: nothing done is lost to a character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def flush() -> None:
    """Write what is buffered now, where an error can still be told; a closed output is None."""
    if sys.stdout is not None:
        sys.stdout.flush()


def discard() -> None:
    """Nobody can take the output any more: what is still buffered is dropped, or Python would fail over it at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return  # closed, or a test's own
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
