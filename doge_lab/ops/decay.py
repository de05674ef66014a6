"""How far decays may be summed in logarithms before float32 cannot divide them by each other again."""

import math

import torch

# A decay below float32's resolution forgets as well as zero does; four of them still fit into its range.
LOG_RESOLUTION = math.log(torch.finfo(torch.float32).eps)
SAFE_BLOCK = 4
"""Tokens of a block within which decays of any strength may be divided by each other."""
SAFE_SPAN = -3 * LOG_RESOLUTION
"""Decay, in logarithms, between the ends of such a block."""
