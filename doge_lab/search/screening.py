"""What a candidate must pass before it is worth training: it can be built and matched, and its cost is admissible."""

from collections.abc import Mapping
from typing import Any

from doge_lab import config
from doge_lab.config import RunConfig
from doge_lab.cost import Cost
from doge_lab.errors import UserError, one_line
from doge_lab.search.config import Space
from doge_lab.search.vetting import Vetting


class Rejected(Exception):
    """A candidate that is not trained. `excess`: constraint -> how far it is broken, as Optuna's samplers read it."""

    def __init__(self, reason: str, excess: Mapping[str, float], cost: Cost | None = None) -> None:
        super().__init__(reason)
        self.excess = excess
        self.cost = cost


def screen(space: Space, drawn: Mapping[str, Any], vetting: Vetting) -> tuple[RunConfig, Cost]:
    """The resolved run and its cost. Raises `Rejected`, also for a block that `vetting` knows to fail."""
    try:
        written = config.parse({**drawn, "name": space.name})
        for layer in written.model.layers:
            for ref in (layer.sequence, layer.state):
                if ref.type in vetting.left_out:
                    raise Rejected(f"left out: {vetting.left_out[ref.type]}", {"contract": 1.0})
        run = written.resolved()
        cost = run.cost()
    except UserError as error:
        raise Rejected(str(error), {"match": 1.0}) from None
    except Rejected:
        raise
    except (Exception, SystemExit) as error:  # a block may raise anything when it is built
        raise Rejected(f"cannot be built: {one_line(error)}", {"match": 1.0}) from None
    try:
        vetting.unexamined(run.dump())
    except UserError as error:
        raise Rejected(str(error), {"contract": 1.0}) from None
    excess: dict[str, float] = {
        name: float(bounds.excess(getattr(cost, name))) for name, bounds in space.search.constraints.items()
    }
    broken = [f"{name} is {getattr(cost, name):,}" for name, value in excess.items() if value > 0]
    if broken:
        raise Rejected(f"outside the constraints: {', '.join(broken)}", excess, cost)
    return run, cost
