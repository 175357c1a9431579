"""``blocked``: what is made of waits, and how they are shown."""

import struct

from msgspec import structs

from whybox.kernel.sensors.blocked import FRAMES, place, present, slow
from whybox.kernel.symbols import Frame
from whybox.kernel.usersymbols import ImageKey
from whybox.trace.blocked import (
    QUESTION,
    Answer,
    Held,
    Now,
    Wait,
    from_site,
    ordered,
    sites,
    stacks,
)
from whybox.trace.question import Answered, Happened, Options
from whybox.views import trace as views

MS = 1_000_000
READ = Held(
    how="S",
    tid=7,
    process="web",
    site="pipe_read",
    kernel=("pipe_read", "vfs_read"),
    user=("main", "read"),
    wait_ns=30 * MS,
    waits=3,
    longest_ns=20 * MS,
)
STUCK = structs.replace(
    READ, how="D", site="folio_wait", kernel=("folio_wait", "filemap_read"), wait_ns=MS, waits=1
)
NOW = Now(
    how="D",
    pid=7,
    tid=8,
    comm="web",
    site="kernel_clone",
    frames=("kernel_clone", "__x64_sys_vfork"),
    waited_ns=2000 * MS,
    at_least=True,
    not_on_cpu_ns=5000 * MS,
)


def answer(*held: Held, now: tuple[Now, ...] = ()) -> Answer:
    return Answer(
        window_ns=3000 * MS,
        sites=sites(held),
        now=now,
        now_more=0,
        brief_waits=5,
        brief_ns=9000,
        crowded_waits=0,
        crowded_ns=0,
        stacks=stacks(held),
    )


def test_waits_in_one_place_are_one_site_whoever_waits() -> None:
    other = structs.replace(
        READ, tid=9, process="job", kernel=("pipe_read", "ksys"), wait_ns=50 * MS, unfinished=1
    )
    [site] = sites([READ, READ, other])
    assert (site.wait_ns, site.waits, site.unfinished, site.tasks) == (110 * MS, 9, 1, 2)
    assert site.longest_ns == 20 * MS
    assert site.processes == ("web", "job")
    # The way on which most time was spent.
    assert site.frames == ("pipe_read", "vfs_read")


def test_d_comes_first_and_apart_from_sleep_in_the_same_place() -> None:
    asleep = structs.replace(STUCK, how="S", wait_ns=90 * MS)
    assert [(one.how, one.site) for one in sites([READ, asleep, STUCK])] == [
        ("D", "folio_wait"),
        ("S", "folio_wait"),
        ("S", "pipe_read"),
    ]


def test_stacks_hold_how_it_waits_and_weigh_in_microseconds() -> None:
    [first, second] = stacks([STUCK, READ, structs.replace(READ, tid=9)])
    assert first.frames == ("sleeping", "main", "read", "vfs_read_[k]", "pipe_read_[k]")
    assert first.weight == 60_000
    assert second.frames[0] == "stuck in D"


def frame(name: str, waits: bool = False) -> tuple[Frame, bool]:
    return Frame(name=name, file="kernel", kernel=True), waits


def test_the_site_is_the_first_function_outside_the_scheduler() -> None:
    stack = [
        frame("__schedule", True),
        frame("schedule", True),
        frame("do_nanosleep", True),
        frame("hrtimer_nanosleep"),
        frame("__x64_sys_nanosleep"),
        frame("do_syscall_64"),
        frame("entry_SYSCALL_64_after_hwframe"),
    ]
    assert from_site(stack) == ("hrtimer_nanosleep", "__x64_sys_nanosleep")
    assert from_site(stack[:2]) == ("schedule",)
    assert from_site([]) == ()


def test_what_waits_now_is_shown_d_first_and_the_longest_first() -> None:
    asleep = structs.replace(NOW, how="S", waited_ns=9000 * MS)
    longer = structs.replace(NOW, waited_ns=2500 * MS, tid=9)
    unknown = structs.replace(NOW, waited_ns=None, tid=10)
    assert ordered([asleep, NOW, unknown, longer]) == (longer, NOW, unknown, asleep)


def test_shown() -> None:
    text = "\n".join(views.text("blocked", Answered(answer=answer(READ, STUCK, now=(NOW,)))))
    assert "stuck in D (uninterruptible): 1 ms of tasks in all" in text
    assert "1 ms  folio_wait  1 wait of 1 task (web), the longest 20 ms" in text
    assert "30 ms  pipe_read  3 waits of 1 task (web)" in text
    assert "pipe_read < vfs_read" in text
    assert "web 8, stuck in D for at least 2 s, last on a CPU 5 s ago: kernel_clone" in text
    assert "5 waits shorter than 10 us" in text


def test_nobody_stuck_is_said() -> None:
    text = "\n".join(views.text("blocked", Answered(answer=answer(READ))))
    assert "stuck in D (uninterruptible): nobody was" in text
    assert "now: 0 tasks stuck or stopped, 0 asleep" in text


def test_one_wait_is_one_line_and_hostile_names_do_no_harm() -> None:
    wait = Wait(
        at_ns=1_500_000_000,
        pid=7,
        tid=8,
        comm="\x1b[31m\n",
        site="x",
        frames=("x", "y"),
        waited_ns=200 * MS,
        at_least=True,
    )
    [line] = views.text("blocked", Happened(event=wait))
    assert line == "1.500000 \\x1b[31m\\n 8 was stuck in D for at least 200 ms: x < y"
    nasty = structs.replace(READ, process="\x1b<b>")
    for draw in views.pictures("blocked").values():
        drawn = draw(answer(nasty), "blocked")
        assert "\x1b" not in drawn


def test_options() -> None:
    assert QUESTION.check(Options()) is None
    assert QUESTION.check(Options(slower_ns=MS)) is None
    assert QUESTION.check(Options(slower_ns=10)) is not None


def wait(how: int = 1, user: int = -1) -> bytes:
    frames = [5, 6] + [0] * (FRAMES - 2)
    return struct.pack(f"=IIIIiI{FRAMES}Q", 8, 7, 3, how, user, 0, *frames)


def test_decoding() -> None:
    found = place(wait())
    assert (found.tid, found.key, found.how) == (8, ImageKey(tgid=7, exec=3), "D")
    assert (found.kernel, found.user) == ((5, 6), -1)
    assert place(wait(how=77)).how == "S"
    told = slow(struct.pack("=QQII16s", 9, 100, 1, 0, b"a\xff\0") + wait())
    assert (told.at_ns, told.waited_ns, told.before, told.comm) == (9, 100, True, "a\\xff")
    here = present(struct.pack("=QQII16s", 0, 0, 0, 0, b"a") + wait())
    assert (here.waited_ns, here.not_on_cpu_ns) == (None, None)
    here = present(struct.pack("=QQII16s", 4, 5, 1, 1, b"a") + wait())
    assert (here.waited_ns, here.not_on_cpu_ns, here.before) == (4, 5, True)
