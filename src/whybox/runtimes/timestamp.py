"""The time stamps of engines: RFC 3339 with up to nine decimals.

>>> nanoseconds("1970-01-01T01:00:02.5+01:00")
2500000000
>>> nanoseconds("0001-01-01T00:00:00Z") is None
True
"""

import re
from datetime import datetime

_RFC3339 = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt ](?P<time>\d\d:\d\d:\d\d)"
    r"(\.(?P<fraction>\d{1,9})\d*)?(?P<zone>[Zz]|[+-]\d\d:\d\d)"
)


def nanoseconds(text: str | None) -> int | None:
    """Nanoseconds since 1970. ``None`` for what never happened (Go's zero time) or is no time."""
    found = _RFC3339.fullmatch(text or "")
    if found is None or found["day"].startswith("0001"):
        return None
    zone = "+00:00" if found["zone"] in "Zz" else found["zone"]
    try:
        # datetime is loaded already, by msgspec; it knows microseconds only.
        whole = datetime.fromisoformat(f"{found['day']}T{found['time']}{zone}")
    except ValueError:
        return None
    return int(whole.timestamp()) * 10**9 + int((found["fraction"] or "0").ljust(9, "0"))
