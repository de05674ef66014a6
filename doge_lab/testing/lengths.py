"""The check of length: tokens give the same however many follow them, and however many came before them.

Shape letters: B batch row, T token, D d_model.
"""

import random
from typing import Any

import torch
from torch import Tensor

from doge_lab.determinism import seed_torch
from doge_lab.testing.case import SPLIT_TOLERANCE, Case, check, close, in_chunks, output, require

SEED = 5


@check()
def any_length(case: Case) -> None:
    """Tokens give the same however many follow or came before: few, a multiple of 128, more than 600."""
    rng = random.Random(SEED)
    longest = rng.randint(1030, 1100) if case.full else rng.randint(650, 750)
    drawn = [rng.randint(40, longest - 1) for _ in range(12 if case.full else 2)]
    multiples = [128 * k for k in range(1, 9)] if case.full else [128, 256, 512]
    # in float64 no router is near enough to a tie for rounding to decide it, however many tokens it sees
    x = case.input(1, longest, seed=SEED).to(case.widest)
    block = case.trained().to(case.widest)
    for training in (False, True):
        block.train(training)
        whole = _run(block, x, grad=False)
        require(whole.isfinite().all(), f"the output is not finite for {longest} tokens")
        short = (16, 32, 64) if training else range(1, 33 if case.full else 18)
        for length in (*short, *multiples, *drawn):
            mode = " in training mode" if training else ""
            promise = f"the first {length} tokens alone give other outputs than among {longest}{mode}"
            y = _run(block, x[:, :length], grad=training)
            close(y, whole[:, :length], promise, SPLIT_TOLERANCE, whole=whole)
    if case.is_sequence:
        _require_long_past(block.eval(), x, rng)


def _run(block: Any, x: Tensor, *, grad: bool) -> Tensor:
    seed_torch(0)
    with torch.set_grad_enabled(grad):
        return output(block, x).detach()


def _require_long_past(block: Any, x: Tensor, rng: random.Random) -> None:
    """A long prompt, single tokens, a chunk, and padding in front of half of it."""
    prompt, longest = rng.randint(x.shape[1] // 2, x.shape[1] - 150), x.shape[1]
    chunks = [prompt, *[1] * 12, 128, longest - prompt - 140]
    with torch.no_grad():
        whole = output(block, x)
        close(in_chunks(block, x, chunks), whole, f"calls after {prompt} tokens differ from one call", SPLIT_TOLERANCE)
        pad = longest // 2
        mask = torch.arange(longest)[None] >= pad
        alone = output(block, x[:, pad:])
        close(output(block, x, mask)[:, pad:], alone, f"{pad} padding tokens change the rest", SPLIT_TOLERANCE)
        y = in_chunks(block, x, chunks, mask)[:, pad:]
        close(y, alone, f"{pad} padding tokens change the rest in {len(chunks)} calls", SPLIT_TOLERANCE)
