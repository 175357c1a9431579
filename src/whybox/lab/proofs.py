"""What became of the labs on this machine, kept in a file so that ``whybox cases`` can tell it."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from whybox import __version__
from whybox.lab.prove import Proof

State = Literal["proved", "not proved", "cannot here"]

#: Where a system service keeps what it must not forget (Filesystem Hierarchy Standard, 5.8);
#: labs are root's. ``WHYBOX_STATE_DIR`` names another place.
DIRECTORY = "/var/lib/whybox"


class Outcome(Struct, frozen=True, kw_only=True):
    """One case's last proof on one kernel."""

    case: str
    kernel: str
    """As ``uname -r`` says it."""
    state: State
    says: str = ""
    """What went wrong first, or why it cannot be made here."""
    at: float
    """Seconds since 1970."""
    version: str = __version__
    """Of whybox."""


def path() -> Path:
    """The file; it need not be there."""
    return Path(os.environ.get("WHYBOX_STATE_DIR") or DIRECTORY) / "proofs.json"


def outcome(proof: Proof) -> Outcome:
    """What is kept of a proof that was made just now."""
    state: State = "proved" if proof.proved else "not proved"
    if proof.impossible is not None:
        state = "cannot here"
    return Outcome(
        case=proof.case,
        kernel=os.uname().release,
        state=state,
        says=proof.impossible or next(iter(proof.failures), ""),
        at=time.time(),
    )


def keep(proof: Proof) -> None:
    """Keep it in place of the one before it. Raises ``OSError``."""
    new = outcome(proof)
    kept = [one for one in _all() if (one.case, one.kernel) != (new.case, new.kernel)]
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whoever reads meanwhile sees the old file or the new one, never half of one.
    written = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        written.write_bytes(msgspec.json.encode([*kept, new]))
        written.replace(file)
    finally:
        written.unlink(missing_ok=True)


def here() -> Mapping[str, Outcome]:
    """By case, for the running kernel; a file that cannot be read tells nothing."""
    kernel = os.uname().release
    return {one.case: one for one in _all() if one.kernel == kernel}


def _all() -> list[Outcome]:
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path().read_bytes(), type=list[Outcome])
    return []
