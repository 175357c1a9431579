"""What machines read: a report, or any of our data, as JSON."""

from typing import Any

import msgspec

from whybox.model import Report


def report(report: Report) -> str:
    """One report, indented; its schema is what ``schema`` prints."""
    return data(report)


def data(value: Any) -> str:
    """Any value of ours, indented."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def schema() -> str:
    """The JSON schema of a report."""
    return data(msgspec.json.schema(Report))
