"""The contract of `doge_lab.block` as checks that anyone can run over a block.

    check_block(MyBlock, n_heads=2)            # raises AssertionError with every promise that is not kept
    run_checks(MyBlock, {"n_heads": 2})        # a list of CheckResult
    check_same_function(MyBlock, {"cache": "kv"}, {"cache": "hidden"})
    check_same_forms(MyBlock, n_heads=2)       # the ops that it calls, in their fast and their reference forms
    CHECKS["causal"].promise                   # what a check looks at

`docs/blocks.md` is the page for authors of blocks.
"""

from doge_lab.testing.case import Check
from doge_lab.testing.equivalence import check_same_forms, check_same_function
from doge_lab.testing.runner import CHECKS, CheckResult, check_block, run_checks

__all__ = ["CHECKS", "Check", "CheckResult", "check_block", "check_same_forms", "check_same_function", "run_checks"]
