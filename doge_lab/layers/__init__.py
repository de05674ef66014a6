"""Pieces that several blocks share. A block imports from here, from `doge_lab.block` and `doge_lab.cache` only."""
