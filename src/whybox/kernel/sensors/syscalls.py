"""The system calls of a container: counts, errors, lengths, and who refused which.

From ``raw_syscalls:sys_enter`` and ``sys_exit``, and from the kernel's check for a capability in
between. A call that seccomp refuses is seen to leave and never to enter (kernel/entry,
``syscall_trace_enter()``: the filter runs before the tracepoint).
"""

import struct
from collections.abc import Iterator
from enum import IntEnum

from msgspec import Struct

from whybox.kernel.bpf.objects import Object, Spec
from whybox.kernel.host import c_string

SPEC = Spec(
    name="syscalls",
    # In this order they are attached: whoever is seen to enter is seen to be refused, and to leave.
    programs=(
        ("on_move",),
        ("on_end",),
        ("on_check", "on_check_begin"),
        ("on_check", "on_check_end"),
        ("on_enter",),
        ("on_exit",),
    ),
    optional=("on_check", "on_signal"),
    falls_back="nothing: what is not seen to enter and to leave is not told",
)

#: Counters of ``checks.h``: those of native calls, then as many of 32-bit programs.
EVERY_CALL = 512
OTHER_CALL = EVERY_CALL - 1

BUCKETS, FIRST_POWER = 32, 6
_CALLS = struct.Struct(f"=QQQQ{BUCKETS}I")
_FAILURE, _COUNT = struct.Struct("=II"), struct.Struct("=Q")
_DENIAL, _DENIALS = struct.Struct("=IHHQQQii"), struct.Struct("=QII16s")
_TOLD = struct.Struct("=QQ40sqII16s")
_DOING = struct.Struct("=QIiQQQQIiII")
_ZERO = struct.pack("=I", 0)


class Kind(IntEnum):
    """``enum kind``: what became of a call."""

    SLOW = 0
    SECCOMP = 1
    """It left and never entered, and a filter is in force."""
    SKIPPED = 2
    """It left and never entered, and no filter is in force: a tracer skipped it."""
    DOUBTED = 3
    """It left, and was the first that was seen of its task: it may have begun before."""
    ENTERED = 4
    """It entered and was refused."""
    TRAPPED = 5
    """Seccomp sent SIGSYS instead, and the task lived on."""
    KILLED = 6
    """Seccomp ended the task."""


class Call(Struct, frozen=True, kw_only=True):
    """All calls of one number that have returned."""

    number: int
    compat: bool
    """Of 32-bit programs, which have numbers of their own."""
    count: int
    errors: int
    sum_ns: int
    longest_ns: int
    buckets: tuple[int, ...]
    """``buckets[n]``: calls of 2^(n+6) to 2^(n+7) ns; the first, everything below 128 ns."""


class Refusal(Struct, frozen=True, kw_only=True):
    """How a call was refused."""

    number: int
    compat: bool
    kind: Kind
    errno: int
    """0 where it was not refused by an error."""
    refused: int
    """A mask: the capabilities that were asked for in it and not granted."""
    overridden: int
    """A mask: those not granted to credentials that the kernel took on for it."""
    elsewhere: int
    """A mask: of ``refused`` those that the task holds, but not in the namespace in question."""
    stack: int | None
    """Where the last of them was refused, of ``stacks``."""


class Refused(Struct, frozen=True, kw_only=True):
    """Calls that were refused alike."""

    how: Refusal
    count: int
    pid: int
    """Of the first."""
    comm: str


class Told(Struct, frozen=True, kw_only=True):
    """One call."""

    at_ns: int
    took_ns: int
    how: Refusal
    result: int
    pid: int
    tid: int
    comm: str


class Running(Struct, frozen=True, kw_only=True):
    """A call that has not returned yet."""

    tid: int
    number: int
    compat: bool
    began_ns: int
    """Of the monotonic clock."""


def calls(object: Object) -> Iterator[Call]:
    """Every call that was made and has returned, in the order of the numbers."""
    every = object.map("calls")
    for key, raw in every.items():
        rows = [_CALLS.unpack(one) for one in every.split(raw)]
        count = sum(row[0] for row in rows)
        if count:
            number, compat = _numbered(int.from_bytes(key, "little"))
            yield Call(
                number=number,
                compat=compat,
                count=count,
                errors=sum(row[1] for row in rows),
                sum_ns=sum(row[2] for row in rows),
                longest_ns=max(row[3] for row in rows),
                buckets=tuple(sum(column) for column in zip(*(r[4:] for r in rows), strict=True)),
            )


def failures(object: Object) -> Iterator[tuple[int, bool, int, int]]:
    """Number, whether of a 32-bit program, errno, and how often; without what never entered."""
    for key, raw in object.map("failures").items():
        index, error = _FAILURE.unpack(key)
        yield *_numbered(index), error, _COUNT.unpack(raw)[0]


def refused(object: Object) -> Iterator[Refused]:
    """What was refused and how often, in no order."""
    for key, raw in object.map("denied").items():
        count, pid, _, comm = _DENIALS.unpack(raw)
        yield Refused(how=refusal(key), count=count, pid=pid, comm=c_string(comm))


def refusal(raw: bytes) -> Refusal:
    """Decode ``struct denial``."""
    index, error, kind, refused, overridden, elsewhere, stack, _ = _DENIAL.unpack(raw)
    number, compat = _numbered(index)
    return Refusal(
        number=number,
        compat=compat,
        kind=Kind(kind),
        errno=error,
        refused=refused,
        overridden=overridden,
        elsewhere=elsewhere,
        stack=None if stack < 0 else stack,
    )


def told(raw: bytes) -> Told:
    """Decode ``struct told``."""
    at, took, how, result, pid, tid, comm = _TOLD.unpack(raw[: _TOLD.size])
    return Told(
        at_ns=at,
        took_ns=took,
        how=refusal(how),
        result=result,
        pid=pid,
        tid=tid,
        comm=c_string(comm),
    )


def running(object: Object) -> Iterator[Running]:
    """The calls that have not returned yet."""
    for key, raw in object.map("tasks").items():
        began, index, *_ = _DOING.unpack(raw)
        if began:
            number, compat = _numbered(index)
            tid = int.from_bytes(key, "little")
            yield Running(tid=tid, number=number, compat=compat, began_ns=began)


def _numbered(index: int) -> tuple[int, bool]:
    """The number of a counter, and whether it is of 32-bit programs."""
    return index % EVERY_CALL, index >= EVERY_CALL


def limit(slower_ns: int | None) -> tuple[bytes, bytes]:
    """The entry of ``slower``: calls are told from this length on; ``None``: none."""
    return _ZERO, _COUNT.pack(slower_ns or 0)
