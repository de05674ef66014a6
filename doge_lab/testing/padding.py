"""The check of padding: a padded row gives at its real tokens what the unpadded row gives.

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
