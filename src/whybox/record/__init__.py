"""Keeping what was observed, to be judged later or elsewhere."""
