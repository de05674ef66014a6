"""The `search:` section of a space file, and the file as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from doge_lab import config as runs
from doge_lab.errors import UserError, in_file
from doge_lab.objective import COST_NAMES, check_names
from doge_lab.search.defaults import with_block_spaces
from doge_lab.search.front import Direction
from doge_lab.search.known import check_known
from doge_lab.search.possible import read_run
from doge_lab.search.space import Scalar
from doge_lab.strict import Strict, validate
from doge_lab.yamlfile import read_mapping, with_overrides


class Bounds(Strict):
    """An admissible range of a cost, ends included."""

    min: NonNegativeInt | None = None
    """The smallest admissible value."""
    max: NonNegativeInt | None = None
    """The largest admissible value."""

    @model_validator(mode="after")
    def _admit_something(self) -> "Bounds":
        if self.min is None and self.max is None:
            raise UserError("give `min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UserError(f"no value is at least min={self.min:,} and at most max={self.max:,}; swap them")
        return self

    def excess(self, value: int) -> int:
        """How far `value` lies outside; 0 or less is admissible."""
        over = value - self.max if self.max is not None else 0
        under = self.min - value if self.min is not None else 0
        return max(over, under)


class SearchConfig(Strict):
    """What is searched for, and how."""

    trials: PositiveInt = 24
    """Candidates to train; those rejected for their cost are not counted."""
    sampler: Literal["tpe", "nsga2", "gp", "random", "qmc"] = "tpe"
    """Optuna's sampler."""
    objectives: dict[str, Direction] = Field(min_length=1)
    """What is measured -> minimize or maximize: a cost (`cache_bytes`) or a task's score (`capacity.bits`)."""
    constraints: dict[Literal["cache_bytes", "params", "active_params", "flops_per_token"], Bounds] = Field(
        default_factory=dict
    )
    """Ranges of costs; a candidate outside is rejected before training."""
    first: tuple[dict[str, Scalar], ...] = ()
    """Configurations to train first: name of a draw -> value, as reports name them; the sampler draws the rest."""
    patience: PositiveInt | None = None
    """Stop early once so many trained candidates in a row have added less than 0.1 % to the hypervolume."""
    confirm_seeds: NonNegativeInt = 3
    """Afterwards the front is trained again on fresh test data, with so many seeds: what the report stands on."""
    allow_faults: bool = False
    """Search over published forms whose known faults fail the contract."""


@dataclass(frozen=True)
class Space:
    """A space file: the run with holes, and how to search it."""

    name: str
    run: Mapping[str, Any]
    search: SearchConfig

    def dump(self) -> dict[str, Any]:
        return {**self.run, "name": self.name, "search": self.search.model_dump(mode="json")}


def load_space(path: Path, overrides: Sequence[str] = ()) -> Space:
    """Read a space file and try every branch of it. Raises `UserError` with the path inside the file."""
    content = with_overrides(read_mapping(path), overrides)
    with in_file(path):
        return parse_space(content, path.stem)


def read_space(content: Mapping[str, Any], name: str) -> Space:
    """The space as written: its blocks are not looked up, so that a report needs none of them installed."""
    run = {key: value for key, value in content.items() if key not in ("search", "name")}
    if "search" not in content:
        raise UserError("a search space needs `search:` with its objectives; a single run is for `doge-lab train`")
    try:
        search = validate(SearchConfig, content["search"])
    except UserError as error:
        raise error.under("search") from None
    return Space(runs.checked_name(str(content.get("name") or name)), run, search)


def parse_space(content: Mapping[str, Any], name: str) -> Space:
    """The space, bare names in a choice of blocks written out, every branch of it read."""
    space = read_space(content, name)
    space = replace(space, run=with_block_spaces(space.run))
    trained = [name for name in space.search.objectives if name not in COST_NAMES]
    for run in read_run(space.run):
        if trained and not run.tasks:
            raise UserError("a search needs at least one task", "tasks")
        try:
            check_names(space.search.objectives, run.tasks)
        except UserError as error:
            raise error.under("search.objectives") from None
    check_known(space.run, space.search.first)
    return space
