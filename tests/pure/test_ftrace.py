"""Pages of a trace buffer, as the kernel writes them, and the tree that is made of them."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from whybox.kernel import tracepages
from whybox.kernel.graphsteps import Step
from whybox.trace.calltree import MOST_DEPTH, MOST_NODES, CallTree

#: The first records of a page of Linux 5.10 (measured): two functions of a task are entered, and
#: the second is left.
MEASURED = struct.pack(
    "=12Q",
    *(0x000000039E14B30D, 0x0000000000000050, 0x0000000B00000005, 0x81911B900000009A),
    *(0x00000000FFFFFFFF, 0x0000000B00BC32C5, 0x81126AE00000009A, 0x00000001FFFFFFFF),
    *(0x0001000A0025F1CB, 0x81126AE00000009A, 0x00000000FFFFFFFF, 0xB3CD2AB000000000),
) + struct.pack("=2Q", 0xB3CDA5B900000003, 0x0000000200000003)

ENTRY = """\
name: funcgraph_entry
ID: 11
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
\tfield:unsigned long func;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int depth;\toffset:16;\tsize:4;\tsigned:1;
"""


def page(records: bytes, *, at: int = 1000, flags: int = 0, after: bytes = b"") -> bytes:
    return struct.pack("=QQ", at, len(records) | flags) + records + after


def short(body: bytes, delta: int) -> bytes:
    return struct.pack("=I", delta << 5 | len(body) // 4) + body


def body(pid: int = 7, kind: int = 11) -> bytes:
    return struct.pack("=HBBi", kind, 0, 0, pid)


def test_a_measured_page_is_read() -> None:
    records = tracepages.parsed(MEASURED).records
    layout = tracepages.format(ENTRY)
    assert [(r.kind, r.pid) for r in records[:2]] == [(11, 154), (11, 154)]
    assert [layout.get(r.body, "depth") for r in records[:2]] == [0, 1]
    assert layout.get(records[0].body, "func") == 0xFFFFFFFF81911B90
    assert records[1].at - records[0].at == 0x00BC32C5 >> 5
    assert layout.get(records[0].body, "no_such_field") is None


def test_time_extends_and_absolute_times_are_heeded() -> None:
    extend = struct.pack("=II", 5 << 5 | 30, 2)
    stamp = struct.pack("=II", 9 << 5 | 31, 3)
    raw = page(short(body(), 1) + extend + short(body(), 1) + stamp + short(body(), 1))
    first = 1001
    second = first + 5 + (2 << 27) + 1
    assert [r.at for r in tracepages.parsed(raw).records] == [first, second, 9 + (3 << 27) + 1]


def test_padding_ends_a_page_and_a_discarded_record_is_skipped() -> None:
    discarded = struct.pack("=III", 1 << 5 | 29, 8, 0)
    end = struct.pack("=I", 29)
    raw = page(short(body(1), 1) + discarded + short(body(2), 1) + end + short(body(3), 1))
    assert [r.pid for r in tracepages.parsed(raw).records] == [1, 2]


def test_a_long_record_tells_its_length_itself() -> None:
    long = body(9) + bytes(200)
    raw = page(struct.pack("=II", 1 << 5, len(long) + 4) + long + short(body(3), 1))
    assert [(r.pid, len(r.body)) for r in tracepages.parsed(raw).records] == [(9, 208), (3, 8)]


def test_lost_events_are_counted() -> None:
    raw = short(body(), 1)
    assert tracepages.parsed(page(raw)).lost == 0
    assert tracepages.parsed(page(raw, flags=1 << 31)).lost == 1
    stored = page(raw, flags=3 << 30, after=struct.pack("=Q", 42))
    assert tracepages.parsed(stored).lost == 42


@given(st.binary(max_size=300))
def test_no_page_is_read_beyond_its_end(raw: bytes) -> None:
    assert len(tracepages.parsed(raw).records) <= len(raw) // 4 + 1


def name(address: int) -> str:
    return {1: "f", 2: "g", 3: "h"}.get(address, hex(address))


def steps(text: str, pid: int = 7) -> list[Step]:
    """Each word a step: ``f0`` enters function 1 at depth 0 …, ``/f0`` leaves it; 10 ns each."""
    found = []
    for n, word in enumerate(text.split()):
        letter, depth = word[-2], int(word[-1])
        found.append(
            Step(
                at_ns=10 * n,
                pid=pid,
                function="_fgh".index(letter),
                depth=depth,
                enters=word[0] != "/",
            )
        )
    return found


def test_calls_are_summed_where_they_stand() -> None:
    tree = CallTree()
    tree.add(steps("f0 g1 h2 /h2 /g1 g1 /g1 h1 /h1 /f0"))
    [f] = tree.roots(name)
    assert (f.name, f.calls, f.total_ns, f.self_ns) == ("f", 1, 90, 40)
    assert [(c.name, c.calls, c.total_ns, c.self_ns) for c in f.calls_to] == [
        ("g", 2, 40, 30),
        ("h", 1, 10, 10),
    ]
    assert [c.name for c in f.calls_to[0].calls_to] == ["h"]
    assert tree.calls == 1
    assert sum(tree.buckets) == 1
    assert [(p.pid, p.count, p.sum_ns) for p in tree.by_pid()] == [(7, 1, 90)]


def test_tasks_that_interleave_are_told_apart() -> None:
    tree = CallTree()
    one, other = steps("f0 g1 /g1 /f0", 1), steps("f0 /f0", 2)
    tree.add([one[0], other[0], one[1], other[1], one[2], one[3]])
    [f] = tree.roots(name)
    assert (f.calls, f.calls_to[0].calls, tree.broken) == (2, 1, 0)


def test_what_was_lost_spoils_nothing_else() -> None:
    tree = CallTree()
    tree.add(steps("f0 g1 h2"))
    tree.forget()
    tree.add(steps("/h2 /g1 /f0 f0 g1 /g1 /f0"))
    [f] = tree.roots(name)
    assert (f.calls, tree.broken, tree.open_calls) == (1, 3, 0)


def test_a_missing_return_is_found_by_the_depth() -> None:
    tree = CallTree()
    tree.add(steps("f0 g1 h1 /h1 /f0 f0 g1 h2 /g1 /f0"))
    [f] = tree.roots(name)
    assert f.calls == 2
    assert tree.broken == 2
    assert {c.name: c.calls for c in f.calls_to} == {"g": 1, "h": 1}


def test_who_was_in_it_before_the_trace_began_is_left_out() -> None:
    tree = CallTree()
    tree.add(steps("g1 h2 /h2 /g1 /f0 f0 /f0"))
    [f] = tree.roots(name)
    assert (f.calls, f.calls_to) == (1, ())


def test_a_tree_is_bounded() -> None:
    tree = CallTree()
    for n in range(MOST_NODES + 10):
        tree.add(
            [
                Step(at_ns=0, pid=1, function=1, depth=0, enters=True),
                Step(at_ns=1, pid=1, function=10 + n, depth=1, enters=True),
                Step(at_ns=2, pid=1, function=10 + n, depth=1, enters=False),
                Step(at_ns=3, pid=1, function=1, depth=0, enters=False),
            ]
        )
    [f] = tree.roots(name)
    assert f.calls == MOST_NODES + 10
    assert len(f.calls_to) == MOST_NODES - 1
    deep = [Step(at_ns=n, pid=2, function=2, depth=n, enters=True) for n in range(MOST_DEPTH * 3)]
    tree.add(deep)
    tree.add(Step(at_ns=999, pid=2, function=2, depth=n, enters=False) for n in range(400, -1, -1))
    assert tree.open_calls == 0


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(-3, 9), st.booleans()), max_size=60))
def test_no_order_of_steps_breaks_it(words: list[tuple[int, int, bool]]) -> None:
    tree = CallTree()
    tree.add(
        Step(at_ns=n, pid=function % 2, function=function, depth=depth, enters=enters)
        for n, (function, depth, enters) in enumerate(words)
    )
    for call in tree.roots(name):
        assert 0 <= call.self_ns <= call.total_ns
