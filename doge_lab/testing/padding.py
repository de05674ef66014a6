"""The checks of padding: a padded row gives at its real tokens what the unpadded row gives.

Shape letters: B batch row, T token, D d_model.
"""

from typing import Any

import torch
from torch import Tensor

from doge_lab.testing.case import SPLIT_TOLERANCE, Case, check, close, in_chunks, output, require

PADS = (0, 3, 5)
"""Padding tokens in front of each row."""


@check(kind="sequence")
def left_padding(case: Case) -> None:
    """Left padding changes nothing at real tokens, whatever it holds, in one call or several, for any type of mask."""
    block = case.trained()
    with torch.no_grad():
        for length in sorted({17, *(min(window, case.reach) + 14 for window in case.windows)}):
            x = case.input(length=length)
            mask = torch.arange(length)[None] >= torch.tensor(PADS)[:, None]
            expected = [output(block, x[row : row + 1, pad:]) for row, pad in enumerate(PADS)]
            _require_rows(output(block, x, mask), expected, "a left-padded row differs from the unpadded row")
            _require_mask_types(block, x, mask)
            loud = torch.where(mask[..., None], x, 50 * x)
            _require_rows(output(block, loud, mask), expected, "what padding tokens hold reaches real tokens")
            for chunks in ([1] * min(length, 20), [4], [6, 1], [length - 3, 1]):
                whole = [*chunks, length - sum(chunks)] if sum(chunks) < length else chunks
                alone = [in_chunks(block, x[row : row + 1, pad:], _without(whole, pad)) for row, pad in enumerate(PADS)]
                for given in (x, loud):
                    actual = in_chunks(block, given, whole, mask)
                    _require_rows(actual, alone, f"a left-padded row differs in {len(whole)} calls with a cache")
            _require_right_padding(block, x)


@check(kind="sequence")
def padding_between_turns(case: Case) -> None:
    """Padding between real tokens changes nothing either, whatever it holds: several left-padded turns of one batch."""
    block = case.trained()
    with torch.no_grad():
        for length in sorted({12, *(min(window, case.reach) + 3 for window in case.windows)}):
            turns = [length, 7, 5]
            mask, x = _turns(turns), case.input(length=sum(turns))
            loud = torch.where(mask[..., None], x, 50 * x)
            expected = [output(block, row[real][None]) for row, real in zip(x, mask, strict=True)]
            for given, promise in (
                (x, "a row with padding between its turns differs from the row without it"),
                (loud, "what padding between two turns holds reaches real tokens"),
            ):
                _require_real(output(block, given, mask), expected, mask, f"{promise}, in one call")
                for chunks in (turns, [length, *[1] * 7, 5], [length - 2, 4, 1, 9]):
                    y = in_chunks(block, given, chunks, mask)
                    _require_real(y, expected, mask, f"{promise}, in {len(chunks)} calls with a cache")


def _turns(lengths: list[int]) -> Tensor:
    """The mask [B, T] of turns, each padded on the left to the longest of the batch; one row is silent for a turn."""
    longest = torch.tensor(lengths)
    real = torch.stack([longest, longest - torch.tensor([3, 2, 4]), longest - torch.tensor([5, 7, 0])])
    return torch.cat([torch.arange(n) >= n - real[:, turn, None] for turn, n in enumerate(lengths)], dim=1)


def _require_real(actual: Tensor, expected: list[Tensor], mask: Tensor, promise: str) -> None:
    require(actual.isfinite().all(), f"{promise}: the output is not finite")
    for row, real in enumerate(mask):
        close(actual[row, real][None], expected[row], f"{promise} (row {row})", SPLIT_TOLERANCE)


def _require_rows(actual: Tensor, expected: list[Tensor], promise: str) -> None:
    require(actual.isfinite().all(), f"{promise}: the output is not finite")
    for row, pad in enumerate(PADS):
        close(actual[row : row + 1, pad:], expected[row], f"{promise} ({pad} padding tokens)", SPLIT_TOLERANCE)


def _without(chunks: list[int], pad: int) -> list[int]:
    """The same calls for a row that lacks the first `pad` tokens."""
    ends = [max(0, sum(chunks[: index + 1]) - pad) for index in range(len(chunks))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False) if end > start]


def _require_mask_types(block: Any, x: Tensor, mask: Tensor) -> None:
    expected = output(block, x, mask)
    for dtype in (torch.float32, torch.int64):
        close(output(block, x, mask.to(dtype)), expected, f"a mask of {dtype} acts otherwise than one of torch.bool")


def _require_right_padding(block: Any, x: Tensor) -> None:
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[0, -4:] = False
    y = output(block, x, mask)
    require(y.isfinite().all(), "the output is not finite for a right-padded row")
    close(y[:1, :-4], output(block, x[:1, :-4]), "right padding changes real tokens", SPLIT_TOLERANCE)
