"""Situations in which a block is looked at: where it stands, what it is given, in which mode it runs.

Faults wait for a situation that no list of cases holds, so situations are drawn from a seed: each property takes its
values in turn, in an order of its own (a Latin square), so that a few situations visit every value of every property,
each time with other values of the rest. The seed is part of every message, so that a failure can be repeated.

Shape letters: B batch row, T token, D d_model.
"""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from doge_lab.determinism import seed_torch
from doge_lab.testing.case import Case

Precision = Literal["float32", "bfloat16", "autocast", "float64"]


@dataclass(frozen=True)
class Situation:
    """One way of using a block. `room`: tokens for which a cache has space beyond those that it is given."""

    seed: int
    place: tuple[int, int]
    batch: int
    length: int
    room: int
    precision: Precision
    grad: Literal["no_grad", "grad", "inference_mode"]
    training: bool
    moved: bool
    repeated: bool

    def __str__(self) -> str:
        layer_idx, n_layers = self.place
        words = [
            f"layer_idx={layer_idx} of n_layers={n_layers}",
            f"{self.batch} rows of {self.length} {'repeated ' if self.repeated else ''}tokens",
            f"room for {self.room} more",
            self.precision,
            self.grad,
            "training" if self.training else "evaluation",
            *(["parameters moved far"] if self.moved else []),
            f"seed {self.seed}",
        ]
        return ", ".join(words)

    @property
    def rounds(self) -> bool:
        """Whether numbers are so coarse that another order of the arithmetic shows."""
        return self.precision in ("bfloat16", "autocast")

    def case(self, case: Case) -> Case:
        return case.at(*self.place)

    def block(self, case: Case) -> Any:
        """The block of `case` at this place, in this mode."""
        there = self.case(case)
        block = there.moved(self.seed) if self.moved else there.trained()
        return block.train(self.training).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "autocast" else getattr(torch, self.precision)

    def input(self, case: Case) -> Tensor:
        """Tokens [B, T, D]: normal numbers, or a few vectors again and again, as a small vocabulary gives."""
        x = case.input(self.batch, self.length, seed=self.seed)
        if self.repeated:
            words = case.input(1, 4, seed=self.seed)[0]
            picks = torch.randint(4, x.shape[:2], generator=torch.Generator().manual_seed(self.seed))
            x = words[picks]
        return x.to(self.dtype)

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Gradients on, off or in inference mode; autocast."""
        grad = torch.inference_mode() if self.grad == "inference_mode" else torch.set_grad_enabled(self.grad == "grad")
        with grad, torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "autocast"):
            yield


def draw(seed: int, count: int, *, longest: int = 300) -> list[Situation]:
    """`count` situations; eight of them visit every value of every property."""
    rng = random.Random(seed)

    def column(values: list[Any]) -> list[Any]:
        repeated = [values[index % len(values)] for index in range(count)]
        rng.shuffle(repeated)
        return repeated

    n_layers = rng.randint(5, 30)
    places = [(0, 1), (0, 3), (1, 2), (2, 3), (1, 3), (3, 4), (rng.randrange(4, n_layers) % 12, n_layers)]
    sizes = [(1, 128), (2, rng.randint(100, longest)), (rng.randint(9, 24), 12), (4, 33), (8, 16)]
    sizes += [(rng.randint(2, 7), rng.randint(8, 64)) for _ in range(3)]
    columns = {
        "place": column(places),
        "size": column(sizes),
        "room": column([0, 1, rng.randint(2, 60), rng.randint(100, 1000)]),
        "precision": column(["float32", "float32", "bfloat16", "float32", "autocast", "float32", "float32", "float64"]),
        "grad": column(["no_grad", "grad", "inference_mode", "grad"]),
        "training": column([False, True, False]),
        "moved": column([False, True]),
        "repeated": column([False, True, False]),
    }
    situations = []
    for index in range(count):
        values = {name: values[index] for name, values in columns.items()}
        batch, length = values.pop("size")
        situations.append(Situation(seed=1000 * seed + index, batch=batch, length=length, **values))
    return situations


def reseed(seed: int) -> None:
    """Set every generator that a block could draw from."""
    seed_torch(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextlib.contextmanager
def own_generators() -> Iterator[None]:
    """Leave the caller's random numbers as they were, whatever is drawn inside."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
