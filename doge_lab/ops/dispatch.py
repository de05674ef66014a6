"""Which form of an op runs: the one place where that is decided, and where a test may decide otherwise.

    delta_rule(q, k, v, w, log_decay, state)        # the form that is fast for these arguments
    with using("reference"):                        # the definition, in every op called inside
        ...
    with using("chunked", delta_rule):              # this form of this op, whatever the arguments
        ...

A form is an ordinary function. The forms of one op take the same arguments and return the same numbers up to rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"
"""The form of every op that is its definition."""

# A plain global: compilers guard on it, so that what was captured inside `using` is captured again outside.
_FORCED: dict[str, str] = {}
_EVERY_OP = "*"

# PyTorch has no public way to ask whether a transform such as `torch.vmap` is at work on a tensor.
_IN_TRANSFORM: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor


def _unchanged(*arguments: Any) -> tuple[Any, ...]:
    return arguments


@dataclass(frozen=True)
class Example:
    """Arguments, by position, with which checks call an op: small tensors on the CPU, and options.

    prepare: makes the op's arguments of these, where an argument is more than a tensor.
    in_float64: whether the forms agree in float64 as well.
    """

    arguments: tuple[Any, ...]
    prepare: Callable[..., tuple[Any, ...]] = _unchanged
    in_float64: bool = True


class Op(Generic[P, R]):
    """A function with several forms.

    forms: by name; `reference` is the definition.
    choose: gives the name of the form that is fast for the arguments.
    examples: gives arguments for the checks, by the name of the case.
    not_stacked: for a form that cannot be mapped over a leading replica axis (`torch.vmap`), the reason.
    looks: for a form whose course depends on numbers that the host must read from the device, the reason.
    autocast: whether the op may run in autocast's type. False for what is summed up over a whole sequence.
    """

    def __init__(
        self,
        name: str,
        forms: Mapping[str, Callable[P, R]],
        choose: Callable[P, str],
        examples: Callable[[], Mapping[str, Example]],
        *,
        not_stacked: Mapping[str, str] | None = None,
        looks: Mapping[str, str] | None = None,
        autocast: bool = True,
    ) -> None:
        if REFERENCE not in forms:
            raise ValueError(f"op {name!r} has no form {REFERENCE!r} among {sorted(forms)}")
        self.name, self.forms, self.choose, self.examples = name, dict(forms), choose, examples
        self.not_stacked, self.looks, self.autocast = dict(not_stacked or {}), dict(looks or {}), autocast

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        form = self.forms[self.form(*args, **kwargs)]
        if self.autocast:
            return form(*args, **kwargs)
        with torch.autocast(cast(Tensor, args[0]).device.type, enabled=False):
            return form(*args, **kwargs)

    def form(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The name of the form that runs for these arguments."""
        if _FORCED:
            forced = _FORCED.get(self.name) or _FORCED.get(_EVERY_OP)
            if forced in self.forms:
                return str(forced)
        return self.choose(*args, **kwargs)


@contextmanager
def using(form: str, *ops: Op[Any, Any]) -> Iterator[None]:
    """Inside the block, `ops` (every op when none is given) run in `form`, where they have it.

    Raises `ValueError` when an op that is given has no such form. It holds for the whole process, all threads.
    """
    for op in ops:
        if form not in op.forms:
            raise ValueError(f"op {op.name!r} has no form {form!r}; it has {', '.join(op.forms)}")
    before = dict(_FORCED)
    _FORCED.update({op.name: form for op in ops} or {_EVERY_OP: form})
    try:
        yield
    finally:
        _FORCED.clear()
        _FORCED.update(before)


def recurrence(
    name: str,
    reference: Callable[P, R],
    chunked: Callable[P, R],
    examples: Callable[[], Mapping[str, Example]],
) -> Op[P, R]:
    """An op that goes through tokens, [B, T, ...] of the first argument: in chunks, or for one token by its definition.

    Its state is summed into over the whole sequence, so that it keeps its type under autocast.
    """

    def choose(*args: P.args, **kwargs: P.kwargs) -> str:
        return REFERENCE if cast(Tensor, args[0]).shape[1] == 1 else "chunked"

    return Op(name, {REFERENCE: reference, "chunked": chunked}, choose, examples, autocast=False)


def at_hand(x: Tensor) -> bool:
    """Whether the host may look at the numbers of `x`: they are in its own memory, and nothing is being captured.

    A look costs a GPU a stop, a compiler its single graph, and has no answer where several replicas are one tensor.
    """
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and not in_transform(x)


def in_transform(x: Tensor) -> bool:
    """Whether `torch.vmap`, `torch.func.grad` or the like is at work on `x`; never while a compiler captures."""
    return not torch.compiler.is_compiling() and _IN_TRANSFORM(x)
