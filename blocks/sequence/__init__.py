"""Sequence blocks: they move information between tokens and own a cache."""
