"""``whybox trace capabilities``: known uses, known refusals, and the minimal set suffices."""

import ctypes
import json
import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.live.gated import gated, go, raw
from tests.live.tracing import Trace, asked
from whybox.kernel.capability import DEFAULT, NAMES
from whybox.lab.box import Box
from whybox.trace.capabilities import Answer, Use


def mask(names: Mapping[str, object] | set[str]) -> int:
    return sum(1 << NAMES.index(name) for name in names)


def ran(body: Callable[[], object], caps: int, uid: int = 0) -> tuple[Trace, list[object]]:
    """The trace of what ``body`` does in a box with these capabilities, and what it returned."""

    def noting() -> None:
        Path("/tmp/results").write_text(json.dumps(body()))

    with Box("trace-capabilities") as box:
        box.user(uid, uid)
        box.keep_caps(caps)
        box.start(gated(noting))
        with asked("capabilities", box.target()) as trace:
            go(box)
        found = Path(f"/proc/{box.pid}/root/tmp/results").read_text()
        assert box.error() is None
    return trace, json.loads(found)


def used(trace: Trace) -> dict[str, int]:
    assert isinstance(trace.answer, Answer)
    return {use.capability: use.count for use in trace.answer.used}


def refused(trace: Trace) -> dict[str, Use]:
    return {use.capability: use for use in trace.answer.refused}


def result(body: Callable[[], object]) -> str:
    """``ok``, or the errno that it failed with."""
    try:
        body()
    except OSError as error:
        return error.strerror or "?"
    return "ok"


def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def bind_80() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 80))


def other_user() -> None:
    """In a child, for it cannot be undone without the capability."""
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            os.setresuid(1234, 1234, 1234)
            os._exit(0)
        os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise PermissionError(1, "Operation not permitted")


def hostname() -> None:
    if raw("sethostname", b"x", 1):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def give_away(uid: int) -> None:
    os.chown("/tmp/mine", uid, -1)


def node(nth: int) -> None:
    os.mknod(f"/tmp/null{nth}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def a_bit_of_everything() -> list[str]:
    """Five chowns, three raw sockets, two nodes, one other user, one low port, and four tries at
    what it may not."""
    Path("/tmp/mine").touch()
    steps: list[Callable[[], object]] = [partial(give_away, 1000 + n) for n in range(5)]
    steps += [raw_socket] * 3 + [partial(node, n) for n in range(2)]
    steps += [other_user, bind_80] + [hostname] * 4
    return [result(step) for step in steps]


def test_what_is_used_is_counted_exactly() -> None:
    trace, results = ran(a_bit_of_everything, DEFAULT)
    assert results == ["ok"] * 12 + ["Operation not permitted"] * 4
    assert used(trace) == {
        "CHOWN": 5,
        "SETUID": 1,
        "NET_BIND_SERVICE": 1,
        "NET_RAW": 3,
        "MKNOD": 2,
    }
    assert refused(trace)["SYS_ADMIN"].count == 4
    assert trace.end is not None
    assert trace.dropped == 0


def two_thousand() -> list[str]:
    """Two places by turns, so often that most are known again without unwinding the stack."""
    Path("/tmp/mine").touch()
    for nth in range(1000):
        give_away(1000 + nth % 2)
        result(hostname)
    return []


def test_places_that_are_known_again_are_told_and_counted_as_those_that_are_unwound() -> None:
    trace, _ = ran(two_thousand, DEFAULT)
    assert used(trace) == {"CHOWN": 1000}
    names = refused(trace)["SYS_ADMIN"]
    assert names.count == 1000
    assert [(place.syscall, place.count) for place in names.places] == [("sethostname", 1000)]
    assert "sethostname" in (names.places[0].site or "")


def test_each_is_told_with_the_call_and_the_place_in_the_kernel() -> None:
    trace, _ = ran(a_bit_of_everything, DEFAULT)
    places = {use.capability: use.places[0] for use in trace.answer.used}
    assert places["NET_RAW"].syscall == "socket"
    assert places["NET_RAW"].site is not None
    assert "inet_create" in places["NET_RAW"].site
    assert places["MKNOD"].syscall in ("mknod", "mknodat")
    assert places["NET_BIND_SERVICE"].syscall == "bind"
    assert {place.syscall for place in refused(trace)["SYS_ADMIN"].places} == {"sethostname"}


def test_the_minimal_set_suffices_and_each_of_it_is_needed() -> None:
    """The same program with exactly what was used does the same; without any one of it, not."""
    trace, results = ran(a_bit_of_everything, DEFAULT)
    needed = set(used(trace))
    again, same = ran(a_bit_of_everything, mask(needed))
    assert same == results
    assert set(used(again)) == needed
    for name in needed:
        _, less = ran(a_bit_of_everything, mask(needed - {name}))
        assert less != results, name


def test_what_is_held_and_not_used_is_told() -> None:
    trace, _ = ran(lambda: [result(raw_socket)], mask({"NET_RAW", "SYS_CHROOT", "KILL"}))
    assert trace.answer.held == ("KILL", "NET_RAW", "SYS_CHROOT")
    assert used(trace) == {"NET_RAW": 1}
    assert trace.answer.unused == ("KILL", "SYS_CHROOT")


def test_to_map_memory_is_no_use_of_sys_admin() -> None:
    """Every mapping asks for SYS_ADMIN, with it or without, and needs it not (measured)."""

    def body() -> list[str]:
        import mmap

        for _ in range(100):
            mmap.mmap(-1, 1 << 20).close()
        return []

    for caps in (DEFAULT, DEFAULT | mask({"SYS_ADMIN"})):
        trace, _ = ran(body, caps)
        assert "SYS_ADMIN" not in used(trace)
        assert "SYS_ADMIN" not in refused(trace)


def test_one_that_makes_up_for_another_is_the_one_that_is_used() -> None:
    """For a directory that nobody may read DAC_READ_SEARCH is asked for first, and DAC_OVERRIDE
    does as well: with the second alone, nothing is missing."""

    def body() -> list[str]:
        os.mkdir("/tmp/closed")
        os.chown("/tmp/closed", 1234, 1234)
        os.chmod("/tmp/closed", 0)
        return [result(lambda: os.listdir("/tmp/closed")) for _ in range(6)]

    trace, results = ran(body, mask({"CHOWN", "DAC_OVERRIDE", "FOWNER"}))
    assert results == ["ok"] * 6
    assert used(trace)["DAC_OVERRIDE"] >= 6
    assert "DAC_READ_SEARCH" not in refused(trace)
    made_up = [n for n in trace.answer.noise if n.capability == "DAC_READ_SEARCH"]
    assert sum(n.count for n in made_up) >= 6


def test_what_a_user_lacks_is_told() -> None:
    def body() -> list[str]:
        os.mkdir("/tmp/closed")
        os.chmod("/tmp/closed", 0)
        return [result(lambda: os.listdir("/tmp/closed")) for _ in range(6)]

    trace, results = ran(body, 0, uid=1000)
    assert results == ["Permission denied"] * 6
    assert used(trace) == {}
    assert {name: use.count for name, use in refused(trace).items()} == {
        "DAC_OVERRIDE": 6,
        "DAC_READ_SEARCH": 6,
    }


def test_of_a_user_namespace_only_its_own_rights_are_told_as_used() -> None:
    """Its root may give away what is in it, with the capability that it has there."""
    with Box("trace-capabilities") as box:
        box.user_namespace()

        def body() -> None:
            Path("/tmp/mine").touch()
            for n in range(5):
                os.chown("/tmp/mine", 1000 + n, -1)

        box.start(gated(body))
        with asked("capabilities", box.target()) as trace:
            go(box)
    assert used(trace)["CHOWN"] == 5
