"""Seeds that no two purposes share by accident."""

import hashlib


def derived(*key: int | str) -> int:
    """A seed below 2^31 that depends on `key` alone, such as a search's seed, a purpose and an index.

    What was searched with `--seed 1` and confirmed with `--seed 0` would otherwise meet: seeds counted up from the
    search's own overlap.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
