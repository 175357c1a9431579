"""``whybox trace syscalls``: what is decoded, judged, summed and shown, on literal data."""

import errno
import struct
from xml.etree import ElementTree

import pytest

from whybox.kernel import syscalltable
from whybox.kernel.capability import NAMES
from whybox.kernel.sensors import syscalls as sensor
from whybox.kernel.sensors.syscalls import Kind, Refusal, Running
from whybox.trace import denial, syscalls
from whybox.trace.denial import Denial
from whybox.trace.question import Answered, Happened
from whybox.trace.syscalls import Answer, Denied, Slow, Unfinished
from whybox.views.trace import text
from whybox.views.trace.syscalls import svg

SYS_ADMIN, FSETID, DAC_OVERRIDE, DAC_READ_SEARCH = (
    1 << NAMES.index(name) for name in ("SYS_ADMIN", "FSETID", "DAC_OVERRIDE", "DAC_READ_SEARCH")
)


def number(name: str) -> int:
    found = syscalltable.number(name)
    assert found is not None
    return found


def refusal(
    kind: Kind = Kind.ENTERED,
    *,
    name: str = "sethostname",
    error: int = errno.EPERM,
    refused: int = 0,
    overridden: int = 0,
    elsewhere: int = 0,
) -> Refusal:
    return Refusal(
        number=number(name),
        compat=False,
        kind=kind,
        errno=error,
        refused=refused,
        overridden=overridden,
        elsewhere=elsewhere,
        stack=None,
    )


def seen(how: Refusal, count: int = 1) -> sensor.Refused:
    return sensor.Refused(how=how, count=count, pid=7, comm="c")


def test_a_denial_is_decoded_as_the_program_lays_it_out() -> None:
    raw = struct.pack("=IHHQQQii", 512 + 74, 13, 4, 6, 0, 2, -17, 0)
    how = sensor.refusal(raw)
    assert (how.number, how.compat, how.kind, how.errno) == (74, True, Kind.ENTERED, 13)
    assert (how.refused, how.elsewhere, how.stack) == (6, 2, None)
    told = sensor.told(struct.pack("=QQ40sqII16s", 5, 9, raw, -13, 70, 71, b"a\x1b\xff\0rest"))
    assert (told.at_ns, told.took_ns, told.result, told.pid, told.tid) == (5, 9, -13, 70, 71)
    assert (told.how, told.comm) == (how, "a\x1b\\xff")


@pytest.mark.parametrize(
    ("how", "by", "wanted"),
    [
        (refusal(Kind.TRAPPED, error=0), "seccomp", 0),
        (refusal(Kind.KILLED, error=0), "seccomp", 0),
        (refusal(Kind.SECCOMP), "seccomp", 0),
        (refusal(Kind.SKIPPED), "tracer", 0),
        (refusal(refused=SYS_ADMIN), "capability", SYS_ADMIN),
        (refusal(), "other", 0),
        # What nothing fails for want of, and what was asked of others' credentials.
        (refusal(refused=FSETID), "other", 0),
        (refusal(overridden=DAC_OVERRIDE), "other", 0),
        (refusal(name="faccessat", overridden=DAC_OVERRIDE), "capability", DAC_OVERRIDE),
    ],
)
def test_what_denied_a_call(how: Refusal, by: str, wanted: int) -> None:
    assert denial.judged(how, memory=False, sure=True) == (by, wanted)


def test_a_reserve_of_memory_denies_nothing() -> None:
    how = refusal(name="mmap", refused=SYS_ADMIN)
    assert denial.judged(how, memory=True, sure=True) == ("other", 0)
    both = refusal(name="mmap", refused=SYS_ADMIN | DAC_OVERRIDE)
    assert denial.judged(both, memory=True, sure=True) == ("capability", DAC_OVERRIDE)


def test_what_was_not_seen_to_enter_is_doubted_until_it_comes_again() -> None:
    doubted, again = refusal(Kind.DOUBTED), refusal(Kind.SECCOMP)
    assert dict(judgement([doubted])) == {Kind.DOUBTED: False}
    assert dict(judgement([doubted, again])) == {Kind.DOUBTED: True, Kind.SECCOMP: True}
    other = refusal(Kind.SECCOMP, name="mount")
    assert dict(judgement([doubted, other])) == {Kind.DOUBTED: False, Kind.SECCOMP: True}
    assert denial.judged(doubted, memory=False, sure=False) == ("unknown", 0)


def judgement(found: list[Refusal]) -> list[tuple[Kind, bool]]:
    return [(one.how.kind, sure) for one, sure in denial.certain(map(seen, found), False, ())]


def test_where_runs_were_missed_what_also_fails_inside_is_not_put_down_to_seccomp() -> None:
    found = [seen(refusal(Kind.SECCOMP, name="read", error=errno.EAGAIN))]
    inside = [(number("read"), False, errno.EAGAIN, 3)]
    assert [sure for _, sure in denial.certain(found, True, inside)] == [False]
    assert [sure for _, sure in denial.certain(found, True, ())] == [True]
    assert [sure for _, sure in denial.certain(found, False, inside)] == [True]


def test_a_percentile_is_never_longer_than_the_longest() -> None:
    assert syscalls.percentile((10, 0, 0, 90), 0.5, 900) == 512 + 512 * 40 // 90
    assert syscalls.percentile((10, 0, 0, 90), 0.05, 900) == 64
    assert syscalls.percentile((0, 0, 0, 1), 0.99, 600) == 600
    assert syscalls.percentile((0,) * 32, 0.99, 0) == 0


def test_calls_are_summed_with_their_failures() -> None:
    def counted(name: str, count: int, sum_ns: int, errors: int = 0) -> sensor.Call:
        return sensor.Call(
            number=number(name),
            compat=False,
            count=count,
            errors=errors,
            sum_ns=sum_ns,
            longest_ns=sum_ns,
            buckets=(count,),
        )

    failures = [
        (number("read"), False, errno.EINTR, 1),
        (number("read"), False, errno.EAGAIN, 3),
        (number("read"), True, errno.EBADF, 9),
    ]
    calls = syscalls.summed([counted("read", 10, 100, 4), counted("futex", 1, 500)], failures)
    assert [(call.syscall, call.mean_ns) for call in calls] == [("futex", 500), ("read", 10)]
    assert [(f.errno, f.count) for f in calls[1].failures] == [("EAGAIN", 3), ("EINTR", 1)]


def test_what_has_not_returned_is_told_by_call() -> None:
    running = [
        Running(tid=tid, number=number(name), compat=False, began_ns=began)
        for tid, name, began in ((1, "futex", 100), (2, "futex", 40), (3, "read", 70))
    ]
    assert syscalls.unfinished(running, 140) == [
        Unfinished(syscall="futex", tasks=2, longest_ns=100),
        Unfinished(syscall="read", tasks=1, longest_ns=70),
    ]


def test_the_hint_says_where_a_capability_would_have_to_be_had() -> None:
    lacking = refusal(refused=SYS_ADMIN)
    assert denial.hint(lacking, "capability", SYS_ADMIN) == "it takes SYS_ADMIN"
    elsewhere = refusal(refused=SYS_ADMIN, elsewhere=SYS_ADMIN)
    assert "user namespace" in denial.hint(elsewhere, "capability", SYS_ADMIN)
    closed = refusal(name="openat", refused=DAC_OVERRIDE | DAC_READ_SEARCH)
    assert "owner and mode" in denial.hint(closed, "capability", closed.refused)
    assert "nr_open" in denial.hint(refusal(name="prlimit64"), "other", 0)
    assert "profile" in denial.hint(refusal(Kind.SECCOMP), "seccomp", 0)


def refused(**changed: object) -> Denial:
    said: dict[str, object] = {
        "syscall": "sethostname",
        "outcome": "EPERM",
        "by": "seccomp",
        "count": 7,
        "comm": "evil\x1b[31m\n",
        "pid": 42,
        "hint": "the profile",
    }
    return Denial(**(said | changed))  # type: ignore[arg-type]


def test_denials_that_are_told_alike_are_told_once() -> None:
    found = [refused(count=7), refused(outcome="ENOSYS", count=8), refused(count=2, pid=43)]
    assert denial.merged(found) == [refused(count=9), refused(outcome="ENOSYS", count=8)]


def answer(**changed: object) -> Answer:
    said: dict[str, object] = {
        "calls": 0,
        "errors": 0,
        "sum_ns": 0,
        "syscalls": (),
        "denials": (),
        "other_denials": 0,
        "unfinished": (),
    }
    return Answer(**(said | changed))  # type: ignore[arg-type]


def test_the_answer_in_words() -> None:
    call = syscalls.Call(
        syscall="read",
        calls=12,
        errors=3,
        sum_ns=24_000,
        mean_ns=2000,
        longest_ns=9000,
        p99_ns=8000,
        buckets=(12,),
        failures=(syscalls.Failure(errno="EAGAIN", count=3),),
    )
    told = answer(
        calls=12,
        errors=3,
        sum_ns=24_000,
        syscalls=(call,),
        denials=(refused(by="capability", capabilities=("CHOWN",), site="chown_common"),),
        other_denials=5,
        unfinished=(Unfinished(syscall="futex", tasks=2, longest_ns=3_000_000_000),),
    )
    lines = text("syscalls", Answered(answer=told))
    assert "12 system calls, 3 of them failed, 24 us in all (waiting is counted)" in lines
    assert any("2 us" in line and line.endswith("read  EAGAIN 3") for line in lines)
    assert any("3 s futex, 2 tasks" in line for line in lines)
    assert any("7 sethostname EPERM by capability CHOWN" in line for line in lines)
    assert any("5 in other ways" in line for line in lines)


def test_a_picture_of_the_lengths_is_safe_xml() -> None:
    call = syscalls.Call(
        syscall="read",
        calls=3,
        errors=0,
        sum_ns=600,
        mean_ns=200,
        longest_ns=300,
        p99_ns=300,
        buckets=(1, 2, 0),
        failures=(),
    )
    drawn = svg(answer(calls=3, syscalls=(call, call)), "a<b>&\x1b")
    root = ElementTree.fromstring(drawn)
    assert "3 system calls" in "".join(root.itertext())
    assert "\x1b" not in drawn
    assert ElementTree.fromstring(svg(answer(), "x")) is not None


def test_an_idle_container_made_no_calls() -> None:
    lines = text("syscalls", Answered(answer=answer()))
    assert lines[1:] == [
        "none of its tasks made a system call that returned",
        "nothing was denied",
    ]


def test_hostile_names_are_harmless() -> None:
    event = Denied(
        at_ns=1_500_000_000,
        pid=7,
        tid=7,
        comm="a\x1b[2J\r",
        syscall="mount",
        outcome="EPERM",
        by="seccomp",
        capabilities=(),
    )
    assert text("syscalls", Happened(event=event)) == [
        "1.500000 a\\x1b[2J\\r 7: mount: EPERM, denied by seccomp"
    ]
    lines = text("syscalls", Answered(answer=answer(denials=(refused(),))))
    assert not any("\x1b" in line or "\n" in line for line in lines)


def test_a_slow_call_is_told_with_what_it_returned() -> None:
    slow = Slow(
        at_ns=0,
        took_ns=2_000_000,
        pid=7,
        tid=7,
        comm="a",
        syscall="read",
        result=-4,
        errno="EINTR",
    )
    assert text("syscalls", Happened(event=slow)) == [
        "0.000000 a 7: read took 2 ms and failed with EINTR"
    ]


def test_what_this_kernel_cannot_see_is_said() -> None:
    left = {"on_check": "no tracepoint cap_capable", "on_check_end": "no kprobes"}
    assert syscalls.notes(["on_enter", "on_exit"], left) == [
        "for want of which capability a call is denied is not told: this kernel has"
        " no tracepoint cap_capable and no kprobes"
    ]
    assert syscalls.notes(["on_enter", "on_exit", "on_check"], {}) == []
