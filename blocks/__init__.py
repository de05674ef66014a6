"""The shelf: one file per block; its stem is its name.

Blocks import `doge_lab.{block,cache,layers,errors}` and nothing else of the lab, and never each other.
"""
