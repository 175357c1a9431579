"""``whybox trace exec``: decoding, the search along PATH, storms, and the view, on literal data."""

import struct

from msgspec import structs

from whybox.kernel.sensors.exec import Ended, Executed, arguments, decoded, status_of
from whybox.trace import exec as trace
from whybox.trace.exec import Command, Exit, Tally
from whybox.trace.question import Answered, Happened
from whybox.views.trace import text

SECOND = 1_000_000_000
NOW = 1000 * SECOND

PLAIN = Executed(
    at_ns=NOW,
    slot=1,
    pid=100,
    nspid=7,
    error=None,
    uid=0,
    euid=0,
    parent_pid=99,
    parent_comm="sh",
    parent_inside=True,
    comm="ls",
    path="/usr/bin/ls",
    arguments=("ls", "-l"),
    cut=False,
)


def one(**changed: object) -> Executed:
    return structs.replace(PLAIN, **changed)


def failed(path: str, error: int = 2, **changed: object) -> Executed:
    return one(path=path, error=error, comm="sh", **changed)


def end(pid: int = 100, status: int = 0, lasted_ns: int = 5_000_000) -> Ended:
    return Ended(at_ns=NOW, slot=1, pid=pid, nspid=7, status=status, lasted_ns=lasted_ns)


def raw(kind: int, code: int = 0, path: bytes = b"/bin/x", said: bytes = b"x\0-y\0") -> bytes:
    head = struct.pack("=QIIIIiI", NOW, kind, 1, 100, 7, code, 0)
    names = (b"sh", b"parent")
    body = struct.pack("=IIIIII16s16s160s512s", 5, 0, 99, 0, 600, len(said), *names, path, said)
    return head + body


def test_the_rings_records_are_decoded() -> None:
    began, could_not = decoded([raw(0), raw(1, code=13, path=b"/bin/\xff\0rest", said=b"")])
    assert isinstance(began, Executed)
    assert isinstance(could_not, Executed)
    assert (began.error, began.path, began.arguments) == (None, "/bin/x", ("x", "-y"))
    assert (began.uid, began.euid, began.parent_inside, began.cut) == (5, 0, False, True)
    assert (could_not.error, could_not.path, could_not.arguments) == (13, "/bin/\\xff", ())


def test_an_end_is_decoded() -> None:
    head = struct.pack("=QIIIIiI", NOW, 2, 1, 100, 7, 0x8B, 0)
    (ended,) = decoded([head + struct.pack("=Q", NOW - 3000)])
    assert isinstance(ended, Ended)
    assert (ended.status, ended.lasted_ns) == (128 + 11, 3000)


def test_arguments_and_statuses() -> None:
    assert arguments(b"") == ()
    assert arguments(b"sh\0\0cut of") == ("sh", "", "cut of")
    assert [status_of(code) for code in (0, 0x100, 0x7F00, 9)] == [0, 1, 127, 137]


def test_a_search_along_path_that_finds_it_is_no_failure() -> None:
    tally = Tally()
    told = tally.take([failed("/a/ls"), failed("/b/ls"), failed("/c/ls"), one()], NOW)
    assert [event.error for event in told if isinstance(event, Command)] == [None]
    assert (tally.answer().executed, tally.answer().failed) == (1, 0)


def test_a_search_in_vain_is_one_failure_with_its_last_error() -> None:
    tally = Tally()
    told = tally.take([failed("/a/x"), failed("/b/x", error=13)], NOW)
    assert told == []
    assert tally.answer().failed == 1  # it is, unless something follows at once
    (told_later,) = tally.take([], NOW + trace.SEARCH_NS)
    assert isinstance(told_later, Command)
    assert (told_later.error, told_later.tried, told_later.path) == ("EACCES", 2, "/b/x")
    assert tally.answer().failed == 1


def test_what_cannot_be_a_search_is_a_failure_by_itself() -> None:
    again, other, late = failed("/a/x"), failed("/a/y"), failed("/b/y", at_ns=NOW + SECOND)
    no_program = failed("/c/y", error=8, at_ns=NOW + SECOND + 1)
    through_shell = one(path="/d/y", at_ns=NOW + SECOND + 2)
    tally = Tally()
    told = tally.take([again, again, other, late, no_program, through_shell], NOW + SECOND)
    assert [(e.path, e.error) for e in told if isinstance(e, Command)] == [
        ("/a/x", "ENOENT"),
        ("/a/x", "ENOENT"),
        ("/a/y", "ENOENT"),
        ("/c/y", "ENOEXEC"),
        ("/d/y", None),
    ]


def test_two_tasks_do_not_mix_their_searches() -> None:
    tally = Tally()
    tally.take([failed("/a/x"), one(path="/b/x", pid=101)], NOW)
    assert tally.answer().failed == 1


def test_ends_are_counted_and_told_where_the_status_is_not_0() -> None:
    tally = Tally()
    told = tally.take([one(), end(), one(), end(status=3), end(pid=5, status=9)], NOW)
    exits = [event for event in told if isinstance(event, Exit)]
    assert [(e.name, e.status) for e in exits] == [("ls", 3)]
    (kind,) = tally.answer().commands
    assert (kind.ended, kind.bad, kind.lasted_ns) == (2, 1, 10_000_000)


def test_a_storm_is_what_comes_often_within_one_second() -> None:
    tally = Tally()
    slowly = [one(at_ns=NOW + n * SECOND, path="/bin/slow") for n in range(50)]
    quickly = [one(at_ns=NOW + n * SECOND // 100, parent_comm="cron") for n in range(50)]
    tally.take([*slowly, *quickly], NOW)
    (storm,) = tally.answer().storms
    assert (storm.name, storm.most_per_second, storm.starter) == ("ls", 50, "cron")


def test_ever_new_names_fill_no_memory() -> None:
    tally = Tally()
    tally.take([one(path=f"/bin/{n}", pid=n) for n in range(30_000)], NOW)
    tally.take([failed(f"/bin/{n}", pid=n) for n in range(30_000)], NOW)
    answer = tally.answer()
    assert len(answer.commands) == trace.MOST_KINDS
    assert answer.executed == 30_000
    assert answer.other == 30_000 - trace.MOST_KINDS
    assert answer.failed == 30_000
    assert len(answer.failures) <= trace.MOST_KINDS + trace.MOST_PENDING + 1


def test_a_runtimes_own_step_is_marked() -> None:
    step = one(path="/proc/self/fd/6", arguments=("runc", "init"), parent_inside=False)
    tally = Tally()
    tally.take([step, one(parent_inside=False)], NOW)
    answer = tally.answer()
    assert (answer.executed, answer.by_runtime, answer.from_outside) == (2, 1, 2)


def test_the_view_quotes_and_harms_no_terminal() -> None:
    hostile = one(
        arguments=("ls", "a b", "\x1b[31m\n0.0 uid 0 init 1 → 2: fake"),
        parent_comm="\x1b]0;x\x07",
        parent_inside=False,
        euid=1000,
        cut=True,
    )
    (event,) = Tally().take([hostile], NOW)
    (line,) = text("exec", Happened(event=event))
    assert not any(ord(sign) < 32 for sign in line)
    assert "uid 0 (acts as 1000) from outside, by" in line
    assert "/usr/bin/ls -l" not in line
    assert "'a b'" in line
    assert line.endswith("…")


def test_the_view_tells_the_file_where_it_is_called_otherwise() -> None:
    busybox = one(path="/bin/busybox", arguments=("ls", "-l"))
    vain = failed("/b/x", arguments=("x", "-v"))
    tally = Tally()
    told = tally.take([busybox, vain], NOW + SECOND)
    lines = [text("exec", Happened(event=event))[0] for event in told]
    assert "ls -l  (of /bin/busybox)" in lines[0]
    assert lines[1].endswith("/b/x -v  FAILED: ENOENT")


def test_the_answer_says_what_is_counted_and_what_cannot_be_seen() -> None:
    tally = Tally()
    runs = [one(at_ns=NOW + n, pid=n) for n in range(25)]
    tally.take([*runs, failed("/b/x\n"), end(pid=3, status=1)], NOW + SECOND)
    lines = text("exec", Answered(answer=tally.answer()))
    said = "\n".join(lines)
    assert "25 commands were executed, 0 came in from outside" in said
    assert "1 ended, after 5 ms on average, 1 with a status other than 0" in said
    assert "a storm: 25 times within one second ls, started by sh" in said
    assert "x\\n: ENOENT" in said
    assert "builtins" in lines[-1]
    assert "no command was executed" in "\n".join(text("exec", Answered(answer=Tally().answer())))
