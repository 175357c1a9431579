"""A capture: the observations of one window in a file, to be judged without the machine.

The file is a line that names the format, then gzip-compressed JSON. It holds what the cases
observed, not what they concluded: a newer whybox judges it anew.
"""

import gzip
import os
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from whybox import __version__
from whybox.diagnose import Window
from whybox.kernel.host import Host, decode
from whybox.kernel.target import Target
from whybox.model import AnyCase, Cost, Seen

FORMAT = "whybox.capture/1"
_MAGIC = b"whybox.capture/"
#: No honest capture is larger when unpacked; a crafted one must not fill the memory.
MOST_BYTES = 256 << 20


class RecordingError(Exception):
    """The file cannot be judged; one sentence says why."""


class Kept(Struct, frozen=True):
    """What a file held, and a host that answers as the recorded machine did."""

    window: Window
    host: Host


class _Seen(Struct, frozen=True, kw_only=True):
    case: str
    observation: Raw = Raw(b"null")
    reason: str | None = None


class _Target(Struct, frozen=True, kw_only=True):
    target: Target
    seen: tuple[_Seen, ...]


class _Capture(Struct, frozen=True, kw_only=True):
    format: str
    whybox: str
    seconds: float
    cost: Cost
    layout: dict[str, str]
    targets: tuple[_Target, ...]


def write(path: str, window: Window, layout: Mapping[str, bytes]) -> int:
    """Keep a window in a file; its size in bytes. A file half written is never left.

    ``layout`` is the kernel files that say how the machine was laid out: cures are commands for
    *that* machine.
    """
    content = _packed(window, layout)
    beside = f"{path}.{os.getpid()}.part"
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        # A full disk, Ctrl-C: whatever it was, no half file stays behind.
        if os.path.exists(beside):
            os.unlink(beside)
        raise
    return len(content)


def _packed(window: Window, layout: Mapping[str, bytes]) -> bytes:
    capture = _Capture(
        format=FORMAT,
        whybox=__version__,
        seconds=window.seconds,
        cost=window.cost,
        layout={file: decode(said) for file, said in layout.items()},
        targets=tuple(
            _Target(target=target, seen=tuple(_kept(one) for one in seen))
            for target, seen in window.targets
        ),
    )
    return FORMAT.encode() + b"\n" + gzip.compress(msgspec.json.encode(capture), mtime=0)


def _kept(seen: Seen) -> _Seen:
    if seen.reason is not None:
        return _Seen(case=seen.case, reason=seen.reason)
    return _Seen(case=seen.case, observation=Raw(msgspec.json.encode(seen.observation)))


def read(path: str, cases: Mapping[str, AnyCase]) -> Kept:
    """What a file kept for these cases; what it does not hold is unknown, with the reason."""
    capture = _unpacked(path)
    targets = tuple(
        (one.target, tuple(_seen(path, name, case, one.seen) for name, case in cases.items()))
        for one in capture.targets
    )
    window = Window(seconds=capture.seconds, cost=capture.cost, targets=targets)
    return Kept(window, Host.recorded({f: t.encode() for f, t in capture.layout.items()}))


def _unpacked(path: str) -> _Capture:
    with open(path, "rb") as file:
        head = file.read(64).partition(b"\n")[0]
        if not head.startswith(_MAGIC):
            raise RecordingError(f"{path} is not a whybox capture")
        if head != FORMAT.encode():
            shown = head.decode("ascii", "replace")
            raise RecordingError(
                f"{path} is a {shown}, which this whybox {__version__} cannot read"
            )
        file.seek(len(head) + 1)
        try:
            return msgspec.json.decode(_plain(path, file.read()), type=_Capture)
        except (EOFError, zlib.error, gzip.BadGzipFile, msgspec.MsgspecError) as error:
            raise RecordingError(f"{path} is damaged: {error}") from None


def _plain(path: str, packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    content = unpacker.decompress(packed, MOST_BYTES)
    if unpacker.unconsumed_tail:
        raise RecordingError(f"{path} unpacks to more than {MOST_BYTES >> 20} MiB: not a capture")
    if not unpacker.eof:
        raise EOFError("it ends in the middle")
    return content


def _seen(path: str, name: str, case: AnyCase, kept: tuple[_Seen, ...]) -> Seen:
    one = next((seen for seen in kept if seen.case == name), None)
    if one is None:
        return Seen(case=name, reason="the capture holds no observation of it")
    if one.reason is not None:
        return Seen(case=name, reason=one.reason)
    try:
        observation: Any = msgspec.json.decode(one.observation, type=case.observation)
    except msgspec.MsgspecError as error:
        raise RecordingError(f"{path} is damaged or of another whybox: {name}: {error}") from None
    return Seen(case=name, observation=observation)
