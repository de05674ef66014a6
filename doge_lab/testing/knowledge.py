"""Checks of what counts as knowledge, and that declarations are the same wherever they are asked for.

Shape letters: B batch row, T token, D d_model.
"""

import dataclasses
import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from doge_lab.block import SequenceBlock
from doge_lab.testing.case import Case, check, fit, output, require
from doge_lab.testing.costs import require_active, require_flops
from doge_lab.testing.holdings import numbers_elsewhere
from doge_lab.testing.memory import require_bytes

CONTEXTS = (1, 16, 100, 1024, 4096)
CONSTANTS = 64
"""Numbers that may be held in one place elsewhere: a few constants are no table."""


@check()
def knowledge_is_counted(case: Case) -> None:
    """Every number that a block holds is a parameter or a buffer, under one name, and num_params counts it."""
    block = case.build()
    fit(case, block, steps=2)
    x = case.input()
    with torch.no_grad(), _Draws() as draws:
        output(block, x)
    require(
        not draws.found,
        f"in evaluation it draws random numbers ({', '.join(sorted(draws.found))}): a table made from a seed in every "
        "call is held nowhere and counted nowhere; make it a buffer",
    )
    held = registered(block)
    names: dict[int, str] = {}
    for name, tensor in held.items():
        first = names.setdefault(id(tensor), name)
        require(
            first == name,
            f"{first!r} and {name!r} are one tensor; building a model on the meta device and saving it part them: "
            "register it once and use it in both places",
        )
        reserved = tensor.untyped_storage().nbytes() // tensor.element_size()
        require(reserved == tensor.numel(), f"{name!r} counts as {tensor.numel()} numbers and holds {reserved}")
    total = sum(tensor.numel() for tensor in held.values())
    require(block.num_params() == total, f"num_params says {block.num_params()}, there are {total}, buffers included")
    everything = [tensor for layer in case.stack(block) for tensor in registered(layer).values()]
    for place, numbers in sorted(numbers_elsewhere(block, everything).items(), key=lambda item: -item[1]):
        require(
            numbers <= CONSTANTS,
            f"{numbers} numbers are held in {place!r}, where no count sees them; make it a parameter or a buffer",
        )


class _Draws(TorchDispatchMode):
    """Notes which operations draw random numbers, attention excepted: it may drop out, and in evaluation does not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in func.name():
            self.found.add(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def registered(block: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; one tensor under two names appears twice."""
    parameters = block.named_parameters(remove_duplicate=False)
    return dict([*parameters, *block.named_buffers(remove_duplicate=False)])


@check()
def declarations_are_pure(case: Case) -> None:
    """What a block declares is the same on meta and off it, in training, evaluation and after calls, and it is true."""
    rng = random.Random(3)
    n_layers = rng.randint(6, 12)
    places = [(0, 1), (1, 2), (1, 3), (2, 3), (3, 4), (rng.randrange(4, n_layers), n_layers), (n_layers - 1, n_layers)]
    here = _declared(case.build())
    for place in [(case.layer_idx, case.n_layers), *places]:
        there = case.at(*place)
        _require_pure(there)
        # where it declares the same as here, what was measured here is enough, but for two places
        differs = _declared(there.build()) != here
        if differs or case.full or place in (places[3], places[5]):
            _require_true(there, active=differs)


def _require_pure(case: Case) -> None:
    where = f"layer_idx={case.layer_idx} of n_layers={case.n_layers}"
    with torch.device("meta"):
        expected = _declared(case.build())
    block = case.build()
    answers = {"on the device": _declared(block), "in training": _declared(block.train())}
    with torch.no_grad():
        output(block.eval(), case.input())
    answers["in evaluation, after a call"] = _declared(block)
    with torch.inference_mode():
        answers["in inference mode"] = _declared(block)
    for how, answer in answers.items():
        for name, value in expected.items():
            require(
                answer[name] == value,
                f"{name} at {where} is {_short(answer[name])} {how}, and {_short(value)} on meta",
            )


def _require_true(case: Case, *, active: bool) -> None:
    where = f"at layer_idx={case.layer_idx} of n_layers={case.n_layers}"
    block = case.trained()
    faults = block.known_faults()  # each is told by the check of that name
    try:
        if "flops" not in faults:
            require_flops(block, [5, 40])
        if case.is_sequence and "cache_bytes" not in faults:
            require_bytes(block, case, [11], torch.bfloat16)
        if active and "active_params" not in faults:
            require_active(case)
    except AssertionError as error:
        raise AssertionError(f"{error} ({where})") from error


def _declared(block: Any) -> dict[str, Any]:
    """Everything that a search counts without running the block."""
    facts: dict[str, Any] = {
        "num_params": block.num_params(),
        "active_params": block.active_params(),
        "the list of parameters and buffers": [
            (name, tuple(tensor.shape), tensor.dtype) for name, tensor in registered(block).items()
        ],
    }
    for context in CONTEXTS:
        facts[f"flops_per_token({context})"] = block.flops_per_token(context)
        facts[f"uncounted_flops_per_token({context})"] = block.uncounted_flops_per_token(context)
    if isinstance(block, SequenceBlock):
        facts["cache_spec"] = {
            name: (type(entry).__name__, dataclasses.astuple(entry)) for name, entry in block.cache_spec().items()
        }
    return facts


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
