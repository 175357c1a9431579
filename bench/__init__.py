"""Ratios against peers and against the limit, measured in one run: never timed tests."""
