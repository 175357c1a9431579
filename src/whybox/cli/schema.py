"""``whybox schema``: the published shape of ``diagnose -o json``."""

import argparse

from whybox.cli import OK


def options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    from whybox.views import json

    print(json.schema())
    return OK
