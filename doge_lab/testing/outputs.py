"""Checks of a single call: shape, type, finite numbers, mixed precision, capture by the compiler."""

from typing import Any

import torch
from torch import Tensor

from doge_lab.testing.case import Case, check, in_chunks, output, relative_difference, require


@check()
def output_shape_and_dtype(case: Case) -> None:
    """The output has the shape and type of the input, in float32 and bfloat16; the input is left as it was."""
    for dtype in (torch.float32, torch.bfloat16):
        block = case.trained().to(dtype)
        for shape in ((3, 17), (1, 1)):
            x = case.input(*shape).to(dtype)
            _require_like_input(output(block, x), x, "the output")
            kept = x.clone()
            for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with mode():
                    block(x)
                require(torch.equal(x, kept), "the block writes to its input")
            if case.is_sequence:
                _require_cache_protocol(block, x)


def _require_like_input(y: object, x: Tensor, what: str) -> None:
    require(isinstance(y, Tensor), f"{what} is a {type(y).__name__}, not a tensor")
    assert isinstance(y, Tensor)
    require(y.shape == x.shape, f"{what} has shape {tuple(y.shape)} for an input of shape {tuple(x.shape)}")
    require(y.dtype == x.dtype, f"{what} has type {y.dtype} for an input of type {x.dtype}")


def _require_cache_protocol(block: torch.nn.Module, x: Tensor) -> None:
    _, cache = block(x)
    require(cache is None, "without a cache the block must return None for it")
    # bfloat16 is the type in which caches are held unless the user says otherwise
    for dtype in {x.dtype, torch.bfloat16}:
        given = block.init_cache(batch=len(x), capacity=x.shape[1], dtype=dtype)  # type: ignore[operator]
        y, returned = block(x, None, given)
        require(returned is given, "the block must return the cache that it was given")
        require(given.position == 0, "the block moves cache.position itself; the model does, once for all layers")
        _require_like_input(y, x, f"the output with a cache of {dtype}")


@check()
def finite(case: Case) -> None:
    """Outputs and gradients are finite for ordinary, large and all-zero inputs, and for a single token."""
    x = case.input()
    inputs = {"ordinary inputs": x, "inputs times 100": 100 * x, "inputs of zeros": 0 * x, "one token": x[:, :1]}
    for block in (case.build(), case.trained()):
        for name, values in inputs.items():
            leaf = values.clone().requires_grad_()
            y = output(block, leaf)
            require(y.isfinite().all(), f"the output is not finite for {name}")
            if not y.requires_grad:
                continue
            y.sum().backward()
            require(leaf.grad is None or leaf.grad.isfinite().all(), f"the input's gradient is not finite for {name}")
            for parameter_name, parameter in block.named_parameters():
                gradient = parameter.grad
                require(
                    gradient is None or gradient.isfinite().all(),
                    f"the gradient of {parameter_name!r} is not finite for {name}",
                )
            block.zero_grad()


@check()
def autocast(case: Case) -> None:
    """Under autocast to bfloat16 the block runs, forward and backward, and stays near its float32 output."""
    block, x = case.trained(), case.input()
    with torch.no_grad():
        expected, expected_in_calls = output(block, x), _in_three_calls(case, block, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = output(block, x.clone().requires_grad_())
        with torch.no_grad():
            in_calls = _in_three_calls(case, block, torch.bfloat16)
    if y.requires_grad:
        y.float().sum().backward()
    _require_near(y.detach(), expected, "in one call")
    _require_near(in_calls, expected_in_calls, "in three calls with a cache")
    for name, parameter in block.named_parameters():
        require(
            parameter.grad is None or parameter.grad.isfinite().all(),
            f"the gradient of {name!r} under autocast is not finite",
        )


def _in_three_calls(case: Case, block: Any, dtype: torch.dtype) -> Tensor:
    x = case.input()
    if not case.is_sequence:
        return output(block, x)
    return in_chunks(block, x, [9, 1, 7], cache=block.init_cache(batch=len(x), capacity=x.shape[1], dtype=dtype))


def _require_near(actual: Tensor, expected: Tensor, how: str) -> None:
    require(actual.isfinite().all(), f"the output under autocast is not finite {how}")
    # over all tokens: a router may choose otherwise for a few of them in bfloat16
    error = float((actual.float() - expected).norm() / (expected.norm() or 1.0))
    require(error < 0.5, f"the output under autocast is off by {error:.2g} of the float32 output {how}")


@check(mode="full")
def compiles(case: Case) -> None:
    """`torch.compile(fullgraph=True)` captures a call as one graph, with and without a cache, and gives its output."""
    block, x = case.trained(), case.input()
    torch._dynamo.reset()
    try:
        compiled = torch.compile(block, fullgraph=True, backend="eager")
        expected = output(block, x).detach()
        result = compiled(x)
        y = result[0] if case.is_sequence else result
        difference = relative_difference(y, expected)
        require(difference < 1e-4, f"the compiled block is off by {difference:.2g} of the largest output")
        if case.is_sequence:
            cache = block.init_cache(batch=len(x), capacity=x.shape[1])
            with torch.no_grad():
                output(block, x[:, :-1], None, cache)
                y, _ = compiled(x[:, -1:], None, cache)
            difference = relative_difference(y, expected[:, -1:])
            require(difference < 1e-4, f"the compiled block with a cache is off by {difference:.2g}")
    finally:
        torch._dynamo.reset()
