"""What blocks compute with: each file one operation, its definition and its fast forms, and the choice between them.

A block calls an op and names no form: `dispatch` decides, and in a test `dispatch.using("reference")` overrides it.
`catalogue.every_op` finds every op there is; `tests/test_ops.py` holds the forms of each to be one function.
"""
