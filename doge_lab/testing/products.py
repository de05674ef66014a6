"""Products in disguise: an elementwise multiplication whose results are then summed is a matrix product.

PyTorch's FLOP counter sees nothing of it, nor of an outer product written as a multiplication.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_MULTIPLY = (_aten.mul.Tensor, _aten.mul_.Tensor, _aten.addcmul.default, _aten.addcmul_.default)
_SUM = (_aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default, _aten.mean.dim, _aten.cumsum.default)


class Products(TorchDispatchMode):
    """Adds up FLOPs, a multiply-add as 2, of outer products and of multiplications that a sum follows."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._products: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _MULTIPLY:
            factors = [part for part in args[-2:] if isinstance(part, Tensor)]
            if len(factors) == 2 and result.numel() > max(factor.numel() for factor in factors):
                self.flops += 2 * result.numel()  # an outer product, summed or not
            elif len(factors) == 2:
                self._products[result.untyped_storage().data_ptr()] = result  # kept alive: no other takes its place
        elif func in _SUM:
            product = self._products.pop(args[0].untyped_storage().data_ptr(), None)
            self.flops += 0 if product is None else 2 * product.numel()
        return result
