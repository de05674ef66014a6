"""What a block holds, copied, so that it can be compared after a call."""

from typing import Any

import torch
from torch import Tensor, nn

_TORCH_OWN = frozenset(vars(nn.Module()))


def all_attributes(block: nn.Module) -> dict[str, Any]:
    """Parameters, buffers and plain attributes, by name."""
    tensors = [*block.named_parameters(), *block.named_buffers()]
    return {**plain_attributes(block), **{name: _copied(tensor) for name, tensor in tensors}}


def plain_attributes(block: nn.Module) -> dict[str, Any]:
    """Attributes of the block and of its modules other than parameters, buffers, modules and the router's report."""
    held = {}
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            if name not in _TORCH_OWN and name != "router_stats":
                held[f"{path}.{name}" if path else name] = _copied(value)
    return held


def same(a: Any, b: Any) -> bool:
    """Whether two copies hold the same values."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_copied(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else id(value)
