"""Writing files whole or not at all, and by one process at a time."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from doge_lab.errors import UserError


def write_text_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` as UTF-8, line ends untouched, so that a reader sees the old file or the new one.

    Missing folders are made. Raises `OSError`, with the old file left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename is atomic only within one file system. Opened rather than made by `tempfile`,
    # whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder` for this process; the system lets go of it however the process ends.

    Raises `UserError` at once when another process holds it: `what` (a search, a run) is at work there.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another {what} is at work in {folder}; let it end, or choose another --out") from None
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", str(folder)) from None
    try:
        yield
    finally:
        lock.release()
