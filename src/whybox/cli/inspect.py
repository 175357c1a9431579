"""``whybox inspect``: what a container is made of."""

import argparse
import sys

from whybox.anatomy import anatomy
from whybox.cli import OK, Failure, choices
from whybox.cli.run import terminal_columns
from whybox.kernel import finding
from whybox.kernel.host import Host


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("target", help="as in whybox diagnose")
    parser.add_argument(
        "--net", action="store_true", help="also how each published port really gets in"
    )
    choices.add_output(parser, "text", "json")


def run(arguments: argparse.Namespace) -> int:
    """Take it apart."""
    host = Host()
    targets = choices.resolved(host, [arguments.target], everything=False)
    try:
        seen = anatomy(host, targets[0], finding.containers(host), net=arguments.net)
    except ProcessLookupError as error:
        raise Failure(f"{targets[0].name}: {error.strerror}") from None
    if arguments.output == "json":
        from whybox.views import json

        print(json.data(seen))
        return OK
    from whybox.views import anatomy as view
    from whybox.views.text import Style

    width = terminal_columns()
    print(view.page(seen, Style(colour=choices.colour(sys.stdout.isatty()), width=width)))
    return OK
