"""Replicas as further rows of a batch: the rule by which `torch.vmap` maps an op that is no sum of PyTorch's own."""

from collections.abc import Sequence

from torch import Tensor


def stacked(replicas: int, dim: int | None, x: Tensor) -> Tensor:
    """`x` with its replicas in front, [R, ...]; the same one for all where `dim` is None."""
    return x.expand(replicas, *x.shape) if dim is None else x.movedim(dim, 0)


def fold(replicas: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [B, ...] whose replicas are at `dims` -> [R * B, ...]."""
    return [stacked(replicas, dim, x).flatten(0, 1) for dim, x in zip(dims, tensors, strict=True)]


def unfold(replicas: int, x: Tensor) -> Tensor:
    """[R * B, ...] -> [R, B, ...]."""
    return x.unflatten(0, (replicas, -1))
