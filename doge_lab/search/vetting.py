"""No block enters a search before it has passed the contract, in every option that the space can sample.

Before the first trial options are varied one at a time and numbers taken at both ends of their range
(`space.alternatives`); a combination that was not among those, the matched width included, is examined before its
first candidate is trained.

A leak wins every naive search, so this cannot be switched off. What passed is remembered, by everything that the
block's source and the contract's reach (`doge_lab.digest`) and the options, so that the next search over the same
blocks starts at once.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doge_lab import config, digest, registry
from doge_lab.block import Block, Kind
from doge_lab.errors import UserError
from doge_lab.files import write_text_atomically
from doge_lab.model import BlockRef
from doge_lab.search.config import Space
from doge_lab.search.possible import with_blocks
from doge_lab.search.space import alternatives

FAILED, KNOWN_FAULT = "failed", "known_fault"


@dataclass(frozen=True)
class Suspect:
    """A block in one configuration. `options` is JSON, so that suspects can be told apart and sent to workers."""

    kind: Kind
    type: str
    options: str
    d_model: int
    full: bool = False
    """Whether all checks are run, as before a model stands on a front, or the quick ones, as before it is trained."""

    def __str__(self) -> str:
        written = ", ".join(f"{name}: {value}" for name, value in json.loads(self.options).items())
        return f"{self.type} ({written})" if written else self.type


class Vetting:
    """The examination of a space's blocks: jobs for the workers, and what follows from their answers."""

    def __init__(self, space: Space, *, skip_failing: bool) -> None:
        self.allow_faults = space.search.allow_faults
        self.skip_failing = skip_failing
        self.suspects = suspects(space)
        self.left_out: dict[str, str] = {}
        """Name of a block that failed, where `skip_failing` leaves it out -> its first failed check."""
        self.verdicts: dict[Suspect, str] = {}
        """What was examined -> its first failed check, empty when it passed."""

    def jobs(self) -> Iterator[dict[str, Any]]:
        """A job for each suspect that was not examined before. Raises `UserError` like `keep`."""
        for index, suspect in enumerate(self.suspects):
            results = remembered(suspect)
            if results is None:
                yield {"job": -1 - index, "kind": "check", "suspect": asdict(suspect)}
            else:
                self._judge(suspect, results)

    def keep(self, job: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Take a worker's answer. Raises `UserError` when the block fails and is not to be left out."""
        suspect = Suspect(**job["suspect"])
        if "results" in answer:
            self._judge(suspect, answer["results"])
        else:  # its process died, or the block cannot even be imported there
            self._judge(suspect, [{"name": "builds", "status": FAILED, "message": answer["reason"]}])

    def _judge(self, suspect: Suspect, results: Sequence[Mapping[str, Any]]) -> None:
        said = self.verdicts[suspect] = verdict(suspect, results, allow_faults=self.allow_faults)
        if not said:
            return
        if self.skip_failing:
            self.left_out.setdefault(suspect.type, said)
        elif all(result["status"] == KNOWN_FAULT for result in results):
            raise UserError(f"{said}. It is a known fault of a published form; say search.allow_faults: true")
        else:
            raise UserError(f"{said}. Mend it, or say --skip-failing to search without it")

    def unexamined(self, run: Mapping[str, Any]) -> list[Suspect]:
        """The blocks of a resolved run, matched width included, in combinations that nobody has looked at.

        Raises `UserError` when one is known to fail.
        """
        found = []
        for suspect in suspects_of(run):
            if suspect not in self.verdicts and (results := remembered(suspect)) is not None:
                self.verdicts[suspect] = verdict(suspect, results, allow_faults=self.allow_faults)
            said = self.verdicts.get(suspect)
            if said:
                raise UserError(said)
            if said is None:
                found.append(suspect)
        return found

    def note(self, answer: Mapping[str, Any]) -> None:
        """Keep what a worker found before it trained a candidate; a failure there fails that trial alone."""
        suspect = Suspect(**answer["suspect"])
        self.verdicts[suspect] = verdict(suspect, answer["results"], allow_faults=self.allow_faults)


def verdict(suspect: Suspect, results: Sequence[Mapping[str, Any]], *, allow_faults: bool) -> str:
    """The first failed check in words; empty when the block may be searched over."""
    for result in results:
        if not (result["status"] == KNOWN_FAULT and allow_faults):
            return f"block {suspect} fails the check {result['name']}: {result['message']}"
    return ""


def suspects(space: Space) -> list[Suspect]:
    """Every block of the space, in every option that differs, each once; at further widths its first form alone."""
    places: list[list[BlockRef]] = []
    with_blocks(space.run["model"], "model", places)
    first, *others = (int(width) for width in alternatives(space.run["model"]["d_model"]))
    found = [_suspect(ref, first) for forms in places for ref in forms]
    found += [_suspect(forms[0], width) for width in others for forms in places]
    return list(dict.fromkeys(found))


def suspects_of(run: Mapping[str, Any], *, full: bool = False) -> list[Suspect]:
    """The blocks of one run, each once; `full` for all checks."""
    model = config.parse(run).model
    refs = (ref for layer in model.layers for ref in (layer.sequence, layer.state))
    return list(dict.fromkeys(_suspect(ref, model.d_model, full=full) for ref in refs))


def _suspect(ref: BlockRef, d_model: int, *, full: bool = False) -> Suspect:
    options = ref.options.model_dump(mode="json", exclude_defaults=True)
    return Suspect(ref.kind, ref.type, json.dumps(options, sort_keys=True), d_model, full)


def examine(suspect: Suspect, on_result: Callable[[object], None] | None = None) -> list[dict[str, Any]]:
    """Run the checks and remember them; returns those not simply passed, as `name`, `status`, `message`.

    A block that refuses its options at this width passes: such a candidate is rejected when it is drawn.
    `on_result` is called after each check.
    """
    from doge_lab.testing import run_checks  # the slow import is the workers' to pay

    block = registry.get(suspect.kind, suspect.type)
    if _refuses(block, suspect):
        return []
    results = run_checks(
        block, json.loads(suspect.options), d_model=suspect.d_model, full=suspect.full, on_result=on_result
    )
    found = [
        {"name": result.name, "status": result.status, "message": result.message}
        for result in results
        if result.status in (FAILED, KNOWN_FAULT)
    ]
    _remember(suspect, block, found)
    return found


def _refuses(block: type[Block], suspect: Suspect) -> bool:
    import torch

    try:
        with torch.device("meta"):
            block(suspect.d_model, **json.loads(suspect.options))
    except UserError:
        return True
    except Exception:
        return False  # whatever else goes wrong is for the checks to report
    return False


def remembered(suspect: Suspect) -> list[dict[str, Any]] | None:
    """What an earlier examination of the same source and options found; None when there was none."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        kept = json.loads(_path(suspect).read_text(encoding="utf-8"))
        besides = {name: Path(file) for name, file in kept["besides"].items()}
        if digest.digest(besides) == kept["digest"]:
            results: list[dict[str, Any]] = kept["results"]
            return results
    return None


def _remember(suspect: Suspect, block: type[Block], results: list[dict[str, Any]]) -> None:
    """With the modules that a third party's block loaded by names that its source does not show."""
    modules = digest.reached(block.__module__)
    besides = {} if registry.is_ours(block) else digest.loaded_besides(modules)
    files = {name: str(file) for name, file in besides.items()}
    kept = {"results": results, "besides": files, "digest": digest.digest(besides)}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_text_atomically(_path(suspect), json.dumps(kept))


def _path(suspect: Suspect) -> Path:
    return _cache_folder() / "checks" / f"{_key(suspect)}.json"


def _cache_folder() -> Path:
    """`$DOGE_LAB_CACHE`, or the user's cache folder."""
    if own := os.environ.get("DOGE_LAB_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "doge_lab"


def _key(suspect: Suspect) -> str:
    """Names what was examined: the block with all that its source reaches, the checks, torch's version, the options."""
    import torch

    block = registry.get(suspect.kind, suspect.type)
    modules = digest.reached("doge_lab.testing") | digest.reached(block.__module__)
    content = f"{asdict(suspect)} {torch.__version__} {digest.digest(modules)}"
    return hashlib.sha256(content.encode()).hexdigest()[:32]
