"""The contract's checks of one block as a job, and what is remembered of those that were run.

What was found is remembered by everything that the block's source and the contract's reach (`doge_lab.digest`) and by
the options, so that the next search over the same blocks starts at once.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doge_lab import config, digest, registry
from doge_lab.block import Block, Kind
from doge_lab.errors import UserError
from doge_lab.files import write_text_atomically
from doge_lab.model import BlockRef

FAILED, KNOWN_FAULT = "failed", "known_fault"


@dataclass(frozen=True)
class CheckCase:
    """A block in one configuration. `options` is JSON, so that cases can be told apart and sent to workers."""

    kind: Kind
    type: str
    options: str
    d_model: int
    full: bool = False
    """Whether all checks are run, as before a model stands on a front, or the quick ones, as before it is trained."""

    def __str__(self) -> str:
        written = ", ".join(f"{name}: {value}" for name, value in json.loads(self.options).items())
        return f"{self.type} ({written})" if written else self.type


def verdict(case: CheckCase, results: Sequence[Mapping[str, Any]], *, allow_faults: bool) -> str:
    """The first failed check in words; empty when the block may be searched over."""
    for result in results:
        if not (result["status"] == KNOWN_FAULT and allow_faults):
            return f"block {case} fails the check {result['name']}: {result['message']}"
    return ""


def cases_of(run: Mapping[str, Any], *, full: bool = False) -> list[CheckCase]:
    """The blocks of one run, each once; `full` for all checks."""
    model = config.parse(run).model
    refs = (ref for layer in model.layers for ref in (layer.sequence, layer.state))
    return list(dict.fromkeys(case_of(ref, model.d_model, full=full) for ref in refs))


def case_of(ref: BlockRef, d_model: int, *, full: bool = False) -> CheckCase:
    options = ref.options.model_dump(mode="json", exclude_defaults=True)
    return CheckCase(ref.kind, ref.type, json.dumps(options, sort_keys=True), d_model, full)


def examine(case: CheckCase, on_result: Callable[[object], None] | None = None) -> list[dict[str, Any]]:
    """Run the checks and remember them; returns those not simply passed, as `name`, `status`, `message`.

    A block that refuses its options at this width passes: such a candidate is rejected when it is drawn.
    `on_result` is called after each check.
    """
    from doge_lab.testing import run_checks  # the slow import is the workers' to pay

    block = registry.get(case.kind, case.type)
    if _refuses(block, case):
        return []
    results = run_checks(block, json.loads(case.options), d_model=case.d_model, full=case.full, on_result=on_result)
    found = [
        {"name": result.name, "status": result.status, "message": result.message}
        for result in results
        if result.status in (FAILED, KNOWN_FAULT)
    ]
    _remember(case, block, found)
    return found


def _refuses(block: type[Block], case: CheckCase) -> bool:
    import torch

    try:
        with torch.device("meta"):
            block(case.d_model, **json.loads(case.options))
    except UserError:
        return True
    except Exception:
        return False  # whatever else goes wrong is for the checks to report
    return False


def remembered(case: CheckCase) -> list[dict[str, Any]] | None:
    """What an earlier examination of the same source and options found; None when there was none."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        kept = json.loads(_path(case).read_text(encoding="utf-8"))
        besides = {name: Path(file) for name, file in kept["besides"].items()}
        if digest.digest(besides) == kept["digest"]:
            results: list[dict[str, Any]] = kept["results"]
            return results
    return None


def _remember(case: CheckCase, block: type[Block], results: list[dict[str, Any]]) -> None:
    """With the modules that a third party's block loaded by names that its source does not show."""
    modules = digest.reached(block.__module__)
    besides = {} if registry.is_ours(block) else digest.loaded_besides(modules)
    files = {name: str(file) for name, file in besides.items()}
    kept = {"results": results, "besides": files, "digest": digest.digest(besides)}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_text_atomically(_path(case), json.dumps(kept))


def _path(case: CheckCase) -> Path:
    return _cache_folder() / "checks" / f"{_key(case)}.json"


def _cache_folder() -> Path:
    """`$DOGE_LAB_CACHE`, or the user's cache folder."""
    if own := os.environ.get("DOGE_LAB_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "doge_lab"


def _key(case: CheckCase) -> str:
    """Names what was examined: the block with all that its source reaches, the checks, torch's version, the options."""
    import torch

    block = registry.get(case.kind, case.type)
    modules = digest.reached("doge_lab.testing") | digest.reached(block.__module__)
    content = f"{asdict(case)} {torch.__version__} {digest.digest(modules)}"
    return hashlib.sha256(content.encode()).hexdigest()[:32]
