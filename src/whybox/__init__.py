"""whybox answers "why is my container …?" on Linux."""

__version__ = "0.1.0"
