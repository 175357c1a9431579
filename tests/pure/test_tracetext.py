"""Lines as a 6.18 kernel printed them, with the names that tasks may give themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whybox.kernel.tracetext import Event, Layout, layout, lost_events, records

SIGNAL_FORMAT = (
    b"name: signal_generate\nID: 261\nformat:\n\tfield:int sig;\toffset:8;\tsize:4;\tsigned:1;\n\n"
    b'print fmt: "sig=%d errno=%d code=%d comm=%s pid=%d grp=%d res=%d", REC->sig, REC->errno, '
    b"REC->code, REC->comm, REC->pid, REC->group, REC->result\n"
)
FORK_FORMAT = (
    b'name: sched_process_fork\n\nprint fmt: "comm=%s pid=%d child_comm=%s child_pid=%d", '
    b"__get_str(parent_comm), REC->parent_pid, __get_str(child_comm), REC->child_pid\n"
)
LAYOUTS = {
    "signal_generate": layout(SIGNAL_FORMAT),
    "sched_process_fork": layout(FORK_FORMAT),
}

NAMES = (b"a\nb-1 [000]", b"x pid=1 res=1", b"-> [", b"\xff\xfe\x1b[31m", b"a b  c ", b"aa\n", b"")


def events(raw: bytes, layouts: dict[str, Layout] | None = None) -> list[Event]:
    return [record.event(layouts or LAYOUTS) for record in records(raw)]


def signal_line(sender: bytes, receiver: bytes, pid: int = 30571, res: int = 1) -> bytes:
    return b"%16s-%-7d [001] d..1.  1619.250225: signal_generate: sig=15 errno=0 code=0 " % (
        sender,
        21693,
    ) + b"comm=%s pid=%d grp=1 res=%d\n" % (receiver, pid, res)


def test_a_plain_line_is_one_event() -> None:
    assert events(signal_line(b"python3", b"nosig")) == [
        Event(
            comm="python3",
            pid=21693,
            cpu=1,
            seconds=1619.250225,
            name="signal_generate",
            fields={
                "sig": "15",
                "errno": "0",
                "code": "0",
                "comm": "nosig",
                "pid": "30571",
                "grp": "1",
                "res": "1",
            },
        )
    ]


@pytest.mark.parametrize("sender", NAMES)
@pytest.mark.parametrize("receiver", NAMES)
def test_a_name_cannot_forge_a_field_or_an_event(sender: bytes, receiver: bytes) -> None:
    found = events(signal_line(sender, receiver) * 3)
    assert [(e.pid, e.fields["pid"], e.fields["res"]) for e in found] == [(21693, "30571", "1")] * 3
    decoded = sender.lstrip(b" ").decode("utf-8", "backslashreplace")
    assert found[0].comm == decoded


@given(st.lists(st.tuples(st.binary(max_size=15), st.binary(max_size=15)), max_size=6))
def test_no_name_at_all_can_forge_one(names: list[tuple[bytes, bytes]]) -> None:
    """Names are at most 15 bytes and hold no NUL: the kernel sees to that."""
    lines = [
        signal_line(a.replace(b"\0", b""), b.replace(b"\0", b""), pid=n, res=n % 3)
        for n, (a, b) in enumerate(names)
    ]
    found = events(b"".join(lines))
    assert [(e.fields["pid"], e.fields["res"]) for e in found] == [
        (str(n), str(n % 3)) for n in range(len(names))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_two_names_in_one_event_are_told_apart(name: bytes) -> None:
    raw = b"%16s-21693   [000] .....  2009.533989: sched_process_fork: " % name
    raw += b"comm=%s pid=21693 child_comm=%s child_pid=21734\n" % (name, name)
    (event,) = events(raw)
    assert (event.fields["pid"], event.fields["child_pid"]) == ("21693", "21734")


def test_an_old_kernel_prints_fewer_flags_and_a_thread_group() -> None:
    raw = (
        b"            bash-1994  (   1994) [003] d..1    52.000001: signal_generate: sig=9 errno=0 "
        b"code=128 comm=a pid=7 grp=1 res=0\n           <...>-7     (-----) [000] d..1    "
        b"52.000002: signal_generate: sig=17 errno=0 code=1 comm=b pid=1 grp=1 res=0\n"
    )
    found = events(raw)
    assert [(e.comm, e.pid, e.cpu, e.fields["code"]) for e in found] == [
        ("bash", 1994, 3, "128"),
        ("<...>", 7, 0, "1"),
    ]


def test_lost_events_are_counted_and_break_no_record() -> None:
    raw = signal_line(b"a", b"b") + b"CPU:1 [LOST 34 EVENTS]\n" + signal_line(b"c", b"d")
    raw += b"CPU:0 [LOST EVENTS]\n" + signal_line(b"e", b"f")
    assert lost_events(raw) == 35
    assert [(e.comm, e.fields["comm"], e.fields["res"]) for e in events(raw)] == [
        ("a", "b", "1"),
        ("c", "d", "1"),
        ("e", "f", "1"),
    ]


def test_a_name_cannot_pretend_that_events_were_lost() -> None:
    assert lost_events(signal_line(b"\nCPU:0 [LOST", b"\nCPU:0 [LOST E")) == 0


def test_an_event_whose_text_does_not_fit_its_format_has_no_fields() -> None:
    raw = b"            bash-7       [000] d..1.  16.250000: signal_generate: sig=none\n"
    assert events(raw)[0].fields == {}


def test_a_format_that_is_beyond_us_has_no_layout() -> None:
    assert layout(b"name: x\nformat:\n") is None
    assert events(signal_line(b"a", b"b"), {"other": None})[0].fields == {}


def test_pointers_symbols_and_texts_are_read_as_they_are_printed() -> None:
    format = (
        b'print fmt: "skbaddr=%p protocol=%u location=%pS reason: %s", REC->skbaddr, REC->protocol'
    )
    raw = (
        b"          <idle>-0       [000] ..s1.  16.250000: kfree_skb: skbaddr=000000008a7 "
        b"protocol=2048 location=tcp_v4_rcv+0x1a8/0xe80 reason: NO_SOCKET\n"
    )
    (event,) = events(raw, {"kfree_skb": layout(format)})
    assert event.fields == {
        "skbaddr": "000000008a7",
        "protocol": "2048",
        "location": "tcp_v4_rcv+0x1a8/0xe80",
        "reason": "NO_SOCKET",
    }


def test_nothing_printed_is_no_event() -> None:
    assert events(b"") == []
    assert events(b"\n") == []
