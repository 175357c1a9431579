"""``hot``: what is made of samples, and how it is shown."""

import struct

import pytest

from whybox.kernel.sensors.hot import addresses
from whybox.kernel.sensors.image import image
from whybox.kernel.symbols import Frame
from whybox.kernel.usersymbols import Image, ImageKey
from whybox.trace.hot import QUESTION, Answer, Seen, looks_cut, summed, whole
from whybox.trace.question import Answered, Options
from whybox.views import trace as views

MAIN = Frame(name="main", file="app")
WORK = Frame(name="work", file="app")
READ = Frame(name="vfs_read", file="kernel", kernel=True)
STRIPPED = Frame(name="[app+0x10]", file="app", named=False)
NOWHERE = Frame(name="[unknown]", file="", named=False)
LIBRARY = Frame(name="helper", file="lib.so")


def seen(
    *user: Frame, kernel: tuple[Frame, ...] = (), count: int = 1, pid: int = 7, comm: str = "app"
) -> Seen:
    return Seen(pid=pid, comm=comm, user=user, kernel=kernel, count=count, cut=looks_cut(user))


def answer(*all: Seen) -> Answer:
    return summed(all, 199, {})


def test_a_function_has_its_own_samples_and_those_of_what_it_called() -> None:
    told = answer(
        seen(MAIN, WORK, count=200), seen(MAIN, count=50), seen(MAIN, kernel=(READ,), count=150)
    )
    assert told.samples == 400
    assert told.kernel_samples == 150
    assert [(f.name, f.own, f.total) for f in told.functions] == [
        ("work", 200, 200),
        ("vfs_read", 150, 150),
        ("main", 50, 400),
    ]
    assert told.functions[0].own_share == 0.5
    assert told.cpu_ns == 400 * 1_000_000_000 // 199


def test_a_function_that_calls_itself_counts_once() -> None:
    [work, main] = answer(seen(MAIN, WORK, WORK, WORK, count=300)).functions
    assert (work.own, work.total, main.total) == (300, 300, 300)


def test_with_199_samples_no_function_is_named_and_with_200_it_is() -> None:
    few = answer(seen(MAIN, count=199))
    assert not few.enough
    assert few.functions == ()
    assert few.stacks[0].weight == 199
    assert answer(seen(MAIN, count=200)).enough


def test_stacks_of_processes_of_one_name_are_one() -> None:
    told = answer(seen(MAIN, kernel=(READ,), pid=1), seen(MAIN, kernel=(READ,), pid=2, count=2))
    [stack] = told.stacks
    assert (stack.process, stack.frames, stack.weight) == ("app", ("main", "vfs_read_[k]"), 3)
    assert [(p.pid, p.samples) for p in told.processes] == [(2, 2), (1, 1)]


def test_a_stack_ends_where_threads_begin() -> None:
    start = Frame(name="__libc_start_call_main", file="app")
    junk = Frame(name="register_tm_clones", file="app")
    assert whole([WORK, MAIN, start, junk, NOWHERE]) == [WORK, MAIN, start]
    assert whole([WORK, NOWHERE, NOWHERE]) == [WORK]
    assert whole([NOWHERE]) == [NOWHERE]
    assert whole([]) == []


@pytest.mark.parametrize(
    ("user", "cut"),
    [
        ((), False),
        ((MAIN, WORK), False),
        ((LIBRARY,), True),
        ((LIBRARY, WORK, WORK, WORK), True),
        ((STRIPPED, STRIPPED, STRIPPED), False),
        ((STRIPPED, STRIPPED), True),
        ((MAIN,) * 127, False),
        ((WORK,) * 127, True),
    ],
)
def test_a_stack_that_was_cut_is_seen_by_its_end(user: tuple[Frame, ...], cut: bool) -> None:
    assert looks_cut(user) is cut


def test_most_stacks_must_look_cut_before_it_is_said() -> None:
    whole, cut = seen(MAIN, count=50), seen(LIBRARY, count=50)
    assert not answer(whole, cut).cut
    assert answer(whole, cut, cut).cut
    assert not answer(seen(kernel=(READ,), count=300)).cut


def test_files_without_names_are_told_with_their_build_id() -> None:
    told = summed([seen(MAIN, STRIPPED, count=5)], 199, {"app": "c0de", "unused": None})
    assert [(one.file, one.build_id, one.samples) for one in told.nameless] == [("app", "c0de", 5)]


def test_shown_with_what_cannot_be_told() -> None:
    told = summed(
        [
            seen(LIBRARY, STRIPPED, count=200),
            Seen(pid=9, comm="x", user=(NOWHERE,), kernel=(), count=40, unread=True, unplaced=True),
        ],
        199,
        {"app": "c0de"},
        late=True,
    )
    text = "\n".join(views.text("hot", Answered(answer=told)))
    assert "240 samples at 199 Hz" in text
    assert "83.3 %   83.3 %  [app+0x10] (app)" in text
    assert "frame pointers" in text
    assert "build id c0de" in text
    assert "40 samples are of processes that ended" in text
    assert "40 samples miss a part" in text
    assert "could not all be read in time" in text


def test_processes_of_one_name_are_shown_as_one() -> None:
    told = answer(seen(MAIN, pid=1, count=100), seen(MAIN, pid=2, count=100))
    text = "\n".join(views.text("hot", Answered(answer=told)))
    assert "100.0 %  app, 2 processes" in text


def test_few_samples_and_none_are_said_to_be() -> None:
    text = "\n".join(views.text("hot", Answered(answer=answer(seen(MAIN, count=57)))))
    assert "too few samples" in text
    assert "main" not in text
    assert "on no CPU" in "\n".join(views.text("hot", Answered(answer=answer())))


def test_hostile_names_do_no_harm() -> None:
    nasty = Frame(name="\x1b[31m<b>\n", file="\u202e&")
    told = answer(seen(MAIN, nasty, count=200, comm="\x1b]0;x\x07"))
    for line in views.text("hot", Answered(answer=told)):
        assert "\x1b" not in line
        assert "\n" not in line
    for draw in views.pictures("hot").values():
        drawn = draw(told, "hot")
        assert "\x1b" not in drawn
        assert "<b>\n" not in drawn


def test_how_often_may_be_asked_within_bounds() -> None:
    assert QUESTION.check(Options(frequency_hz=199)) is None
    assert QUESTION.check(Options(frequency_hz=0)) is not None
    assert QUESTION.check(Options(frequency_hz=10_001)) is not None


def test_decoding() -> None:
    assert addresses(struct.pack("=3Q", 1, 2, 3)) == (1, 2, 3)
    assert addresses(b"") == ()
    raw = struct.pack("=QQQ16s", 5, 6, 7, b"caf\xff\0junk")
    assert image(struct.pack("=II", 1, 2), raw) == (
        ImageKey(tgid=1, exec=2),
        Image(start_stack=5, start_code=6, inode=7, comm="caf\\xff"),
    )
