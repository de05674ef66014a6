"""What a candidate must pass before it is worth training: it can be built and matched, and its cost is admissible.

To build a model is to run its blocks' code, so that part is a job (`doge_lab.engine.jobs.weigh`), like training.
"""

from collections.abc import Mapping
from typing import Any

from doge_lab import config
from doge_lab.config import RunConfig
from doge_lab.errors import UserError
from doge_lab.search.config import Space
from doge_lab.search.vetting import Vetting


class Rejected(Exception):
    """A candidate that is not trained. `excess`: constraint -> how far it is broken, as Optuna's samplers read it."""

    def __init__(self, reason: str, excess: Mapping[str, float], cost: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.excess = excess
        self.cost = cost


def read(space: Space, drawn: Mapping[str, Any], vetting: Vetting) -> RunConfig:
    """The run as it was drawn. Raises `Rejected` for one that breaks a rule, or has a block that was left out."""
    try:
        run = config.parse({**drawn, "name": space.name})
    except UserError as error:
        raise Rejected(str(error), {"match": 1.0}) from None
    for layer in run.model.layers:
        for ref in (layer.sequence, layer.state):
            if ref.type in vetting.left_out:
                raise Rejected(f"left out: {vetting.left_out[ref.type]}", {"contract": 1.0})
    return run


def admit(space: Space, weighed: Mapping[str, Any], vetting: Vetting) -> RunConfig:
    """The run that was weighed. Raises `Rejected`, also for a block that `vetting` knows to fail."""
    if "refused" in weighed:
        raise Rejected(weighed["refused"], {"match": 1.0})
    run, cost = config.parse(weighed["run"]), weighed["cost"]
    try:
        vetting.unexamined(weighed["run"])
    except UserError as error:
        raise Rejected(str(error), {"contract": 1.0}) from None
    excess: dict[str, float] = {
        name: float(bounds.excess(cost[name])) for name, bounds in space.search.constraints.items()
    }
    broken = [f"{name} is {cost[name]:,}" for name, value in excess.items() if value > 0]
    if broken:
        raise Rejected(f"outside the constraints: {', '.join(broken)}", excess, cost)
    return run
