"""Checks of parameters and buffers: where they come from, whether they learn, whether they can be saved."""

import torch
from torch import Tensor, nn

from doge_lab.block import Block
from doge_lab.determinism import seed_torch
from doge_lab.testing.case import Case, check, fit, require

NOISE = 1e-7
"""A gradient below this share of the largest one is what rounding leaves of zero."""


@check()
def initialises_everything(case: Case) -> None:
    """`reset_parameters` writes every parameter and buffer of a block built on the meta device."""
    left = []
    for fill, integer_fill in ((float("nan"), 0), (7.0, 1)):
        with torch.device("meta"):
            block = case.build()
        block.to_empty(device="cpu")
        _require_no_stray_tensor(block)
        for tensor in _tensors(block).values():
            with torch.no_grad():
                tensor.fill_(fill if tensor.is_floating_point() else integer_fill)
        seed_torch(0)
        block.reset_parameters()
        left.append({name: tensor.clone() for name, tensor in _tensors(block).items()})
    for name, tensor in left[0].items():
        unwritten = tensor.is_floating_point() and tensor.isnan().any()
        require(not unwritten and torch.equal(tensor, left[1][name]), f"reset_parameters leaves {name!r} unwritten")


def _require_no_stray_tensor(block: nn.Module) -> None:
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                place = f"{path}.{name}" if path else name
                raise AssertionError(f"{place!r} is a tensor on the meta device for ever; register it as a buffer")


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    return dict([*block.named_parameters(), *block.named_buffers()])


@check()
def same_seed_same_weights(case: Case) -> None:
    """One seed gives one set of weights."""
    first, second = _tensors(case.build(seed=3)), _tensors(case.build(seed=3))
    require(first.keys() == second.keys(), "two builds with one seed have different parameters")
    for name, tensor in first.items():
        require(torch.equal(tensor, second[name]), f"{name!r} differs between two builds with one seed")


@check()
def initialisation_survives_assembly(case: Case) -> None:
    """In an assembled model every layer still holds what its own `reset_parameters` wrote."""
    written: list[tuple[Block, dict[str, Tensor]]] = []

    def reset_and_record(self: Block) -> None:
        case.block.reset_parameters(self)
        written.append((self, {name: tensor.detach().clone() for name, tensor in _tensors(self).items()}))

    recording = type(case.block.__name__, (case.block,), {"reset_parameters": reset_and_record})
    model = Case(recording, case.options, case.d_model).model()
    last = {id(block): state for block, state in written}
    for block in model.blocks():
        if not isinstance(block, recording):
            continue
        for name, tensor in _tensors(block).items():
            require(
                torch.equal(tensor, last[id(block)][name]),
                f"{name!r} of layer {block.layer_idx} no longer holds its own initialisation in an assembled model",
            )
    with torch.no_grad():
        require(model(torch.arange(8)[None]).isfinite().all(), "the logits of an assembled model are not finite")


@check()
def parameters_learn(case: Case) -> None:
    """The task alone gives every parameter a finite, non-zero gradient, and moves it within five AdamW steps."""
    block = case.build()
    before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    largest = dict.fromkeys(before, 0.0)

    def inspect() -> None:
        for name, parameter in block.named_parameters():
            if parameter.grad is not None:
                require(parameter.grad.isfinite().all(), f"the gradient of {name!r} is not finite")
                largest[name] = max(largest[name], parameter.grad.abs().max().item())

    fit(case, block, steps=5, lr=1e-3, auxiliary=False, inspect=inspect)
    noise = NOISE * max(largest.values(), default=0.0)
    for name, parameter in block.named_parameters():
        require(parameter.requires_grad, f"{name!r} does not require a gradient; what is not learned is a buffer")
        require(largest[name] > noise, f"{name!r} gets no gradient in five steps")
        require(not torch.equal(parameter, before[name]), f"{name!r} does not move in five steps")
