"""Writing files whole or not at all."""

import os
import secrets
from pathlib import Path


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
