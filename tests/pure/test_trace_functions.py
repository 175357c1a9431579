"""Functions: sums of all CPUs, names that are alike, and how it is shown."""

import struct
from xml.etree import ElementTree

import pytest

from whybox.kernel.sensors import functions as sensor
from whybox.trace import nearest
from whybox.trace.calltree import Call
from whybox.trace.functions import QUESTION, Answer, Caller
from whybox.trace.question import Answered, Options
from whybox.views import trace as views
from whybox.views.histogram_svg import svg
from whybox.views.trace import functions as view

EVENTS = (
    *("syscalls/sys_enter_openat", "syscalls/sys_enter_read", "syscalls/sys_enter_readv"),
    *("vmscan/mm_vmscan_memcg_reclaim_begin", "vmscan/mm_vmscan_direct_reclaim_begin"),
    *("vmscan/mm_vmscan_write_folio", "memcg/mod_memcg_state", "tcp/tcp_retransmit_skb"),
    *("oom/mark_victim", "sched/sched_switch", "sched/sched_process_exit", "ext4/ext4_read_folio"),
)


@pytest.mark.parametrize(
    ("function", "event"),
    [
        ("do_sys_openat2", "syscalls/sys_enter_openat"),
        ("__x64_sys_openat", "syscalls/sys_enter_openat"),
        ("vfs_read", "syscalls/sys_enter_read"),
        ("try_to_free_mem_cgroup_pages", "vmscan/mm_vmscan_memcg_reclaim_begin"),
        ("try_to_free_pages", "vmscan/mm_vmscan_direct_reclaim_begin"),
        ("__tcp_retransmit_skb", "tcp/tcp_retransmit_skb"),
        ("oom_kill_process", "oom/mark_victim"),
        ("schedule", "sched/sched_switch"),
        ("do_exit", "sched/sched_process_exit"),
    ],
)
def test_the_nearest_tracepoint_is_the_first(function: str, event: str) -> None:
    assert nearest.tracepoints(function, EVENTS)[0] == event


def test_what_is_near_to_nothing_is_offered_nothing() -> None:
    assert nearest.tracepoints("estimation_xyz", EVENTS) == ()
    assert nearest.tracepoints("___", EVENTS) == ()
    assert nearest.tracepoints("vfs_read", ()) == ()


def test_a_function_that_the_compiler_renamed_is_offered_first() -> None:
    known = ["shrink_node_x", "shrink_node.isra.0", "other"]
    assert nearest.names("shrink_node", known)[0] == "shrink_node.isra.0"


def packed(*heads: tuple[int, ...], bucket: int = 3) -> tuple[bytes, ...]:
    buckets = [0] * sensor.BUCKETS
    buckets[bucket] = 2
    return tuple(struct.pack(f"=8Q{sensor.BUCKETS}Q", *head, *buckets) for head in heads)


def test_the_sums_of_all_cpus_are_one() -> None:
    found = sensor.summed(packed((5, 4, 100, 60, 1, 80, 1, 0), (2, 2, 10, 9, 0, 10, 0, 3)))
    assert (found.entered, found.count, found.sum_ns, found.longest_ns) == (7, 6, 110, 60)
    assert (found.nested, found.outer_ns, found.unpaired, found.untold) == (1, 90, 1, 3)
    assert found.buckets[3] == 4


def test_calls_that_are_not_watched_are_told_apart() -> None:
    value = struct.pack("=II", 1, 3) + struct.pack("=6Q", 5, 0x100, 6, 0x81, 7, 0x40) + bytes(80)
    found = sensor.opened(9, value)
    assert (found.tid, found.watched, found.unwatched) == (9, 2, 1)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (Options(), "needs --function"),
        (Options(function="a; reboot"), "no name"),
        (Options(function="vfs_*"), "no name"),
        (Options(function="vfs_read", depth=0), "--depth"),
        (Options(function="vfs_read", depth=51), "--depth"),
    ],
)
def test_options_are_checked(options: Options, wrong: str) -> None:
    assert wrong in (QUESTION.check(options) or "")


def test_sensible_options_pass() -> None:
    assert QUESTION.check(Options(function="vfs_read.constprop.0", depth=3)) is None


TREE = Call(
    name="vfs_read",
    calls=4,
    total_ns=4_000_000,
    self_ns=1_000_000,
    longest_ns=2_000_000,
    calls_to=(
        Call(
            name="ext4_file_read_iter",
            calls=4,
            total_ns=2_500_000,
            self_ns=500_000,
            longest_ns=1,
            calls_to=(
                Call(name="copy", calls=8, total_ns=2_000_000, self_ns=2_000_000, longest_ns=1),
            ),
        ),
        Call(name="fsnotify", calls=4, total_ns=500_000, self_ns=500_000, longest_ns=1),
        Call(name="tiny", calls=1, total_ns=10, self_ns=10, longest_ns=1),
    ),
)


def answer(**more: object) -> Answer:
    fields: dict[str, object] = {
        "function": "vfs_read",
        "calls": 4,
        "sum_ns": 4_000_000,
        "outer_ns": 4_000_000,
        "nested": 0,
        "longest_ns": 2_000_000,
        "buckets": (0,) * 19 + (1, 3) + (0,) * 19,
        "open": 1,
        "missed": 2,
        "callers": (Caller(pid=7, comm="a\x1b[2J\nb", count=4, sum_ns=4_000_000, longest_ns=1),),
        "tree": (TREE,),
    }
    return Answer(**(fields | more))  # type: ignore[arg-type]


def test_the_answer_is_told_and_harms_no_terminal() -> None:
    lines = views.text("functions", Answered(answer=answer()))
    text = "\n".join(lines)
    assert "vfs_read: 4 calls, 4 ms in all, 1 ms on average, 2 ms at most; 1 is in it now" in text
    assert "2 calls more began and could not be followed" in text
    assert "\x1b" not in text
    assert all("\n" not in line for line in lines)


def test_the_tree_is_drawn() -> None:
    assert view.tree((TREE,)) == [
        "     total     self    calls",
        "      4 ms     1 ms        4  vfs_read",
        "    2.5 ms   500 us        4  ├─ ext4_file_read_iter",
        "      2 ms     2 ms        8  │  └─ copy",
        "    500 us   500 us        4  ├─ fsnotify",
        "     10 ns                 1  └─ … 1 more",
    ]


def test_a_large_tree_is_cut_and_says_so() -> None:
    leaves = tuple(
        Call(name=f"f{n}", calls=1, total_ns=1000, self_ns=1000, longest_ns=1) for n in range(10)
    )
    middle = tuple(
        Call(name=f"m{n}", calls=1, total_ns=10_000, self_ns=0, longest_ns=1, calls_to=leaves)
        for n in range(12)
    )
    top = Call(name="top", calls=1, total_ns=120_000, self_ns=0, longest_ns=1, calls_to=middle)
    lines = view.tree((top,))
    assert len(lines) == view.MOST_LINES + 1
    assert "lines more" in lines[-1]


def test_never_called_is_said() -> None:
    none = answer(calls=0, tree=(), callers=(), missed=0, open=0, buckets=(0,) * 40)
    assert view.answer(none) == ["no task of it called vfs_read"]
    ElementTree.fromstring(view.svg(none, "functions"))


def test_the_picture_is_whole_and_escaped() -> None:
    picture = view.PICTURES["svg"](answer(function="<script>\x1b"), "functions & more")
    root = ElementTree.fromstring(picture)
    assert root.tag.endswith("svg")
    assert "<script>" not in picture
    assert "\x1b" not in picture
    assert "functions &amp; more: &lt;script&gt;" in picture


@pytest.mark.parametrize("buckets", [(), (0, 0), (1,), (0, 5, 0), tuple(range(40))])
def test_any_histogram_can_be_drawn(buckets: tuple[int, ...]) -> None:
    ElementTree.fromstring(svg(buckets, [str(n) for n in range(len(buckets))], "t"))
