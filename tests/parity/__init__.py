"""Comparisons with published implementations; a package, so that a file here may share its name with one above."""
