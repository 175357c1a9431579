"""``disk``: decoding, adding up and showing on literal data."""

import struct

import pytest

from whybox.kernel import blockio
from whybox.kernel.blockio import Limit
from whybox.kernel.host import Host
from whybox.kernel.sensors import disk as sensor
from whybox.kernel.sensors.disk import LATENCIES, SIZES, Totals
from whybox.trace.disk import Io, Kind, answered, counted, where
from whybox.trace.question import Answered, Happened
from whybox.views.trace import disk as view
from whybox.views.trace import text

MS = 1_000_000
DISK = (8, 0)
HOST = Host.recorded({"/sys/dev/block/8:0/uevent": b"MAJOR=8\nMINOR=0\nDEVNAME=sda\n"})


def buckets(length: int, **held: int) -> tuple[int, ...]:
    return tuple(held.get(f"at{n}", 0) for n in range(length))


def totals(
    slot: int = 1,
    *,
    kind: str = "write",
    count: int = 4,
    size: int = 65536,
    throttled_ns: int = 0,
    queued_ns: int = 0,
    device_ns: int = 4 * MS,
    throttled: int = 0,
) -> Totals:
    return Totals(
        slot=slot,
        device=DISK,
        kind=kind,
        count=count,
        bytes=count * size,
        throttled_ns=throttled_ns,
        queued_ns=queued_ns,
        device_ns=device_ns,
        longest_ns=2 * MS,
        throttled=throttled,
        errors=0,
        device_buckets=buckets(LATENCIES, at9=count),
        wait_buckets=buckets(LATENCIES, at0=count),
        size_buckets=buckets(SIZES, at7=count),
    )


LIMIT = Limit(device=DISK, file="/group/io.max", what="write bytes", value=10 << 20)


def test_sums_are_decoded_as_the_programs_keep_them() -> None:
    key = struct.pack("=IIII", 3, 8, 16, 1)
    value = struct.pack("=8Q", *range(1, 9)) + struct.pack(
        f"={2 * LATENCIES + SIZES}I", *range(2 * LATENCIES + SIZES)
    )
    one = sensor.decoded(key, value)
    assert (one.slot, one.device, one.kind) == (3, (8, 16), "write")
    assert (one.count, one.bytes, one.throttled_ns, one.queued_ns) == (1, 2, 3, 4)
    assert (one.device_ns, one.longest_ns, one.throttled, one.errors) == (5, 6, 7, 8)
    assert one.device_buckets == tuple(range(LATENCIES))
    assert one.wait_buckets[0] == LATENCIES
    assert one.size_buckets[-1] == 2 * LATENCIES + SIZES - 1


def test_a_slow_io_is_decoded() -> None:
    raw = struct.pack("=QQQQQIIIIIIiI16s", 1, 2, 3, 4, 5, 6, 8, 0, 9, 10, 11, 12, 0, b"d\xff\0x")
    one = sensor.slow(raw)
    assert (one.at_ns, one.throttled_ns, one.queued_ns, one.device_ns) == (1, 2, 3, 4)
    assert (one.sector, one.slot, one.device, one.bytes, one.pid) == (5, 6, (8, 0), 10, 11)
    assert (one.kind, one.error, one.comm) == ("other", 12, "d\\xff")


def test_what_is_its_own_and_what_is_others_is_told_apart() -> None:
    mine, others = totals(1, count=4), totals(0, count=100, kind="read")
    answer = answered(HOST, 1, [mine, others], [])
    (device,) = answer.devices
    assert (device.name, device.major, device.minor) == ("sda", 8, 0)
    assert [(kind.kind, kind.count, kind.bytes) for kind in device.kinds] == [("write", 4, 262144)]
    assert (device.others_count, device.others_bytes) == (100, 6553600)
    assert answered(HOST, 2, [mine], []).devices == ()


def test_limits_of_other_devices_do_not_matter() -> None:
    other = Limit(device=(8, 16), file="f", what="read IOs", value=5)
    (device,) = answered(HOST, 1, [totals()], [other, LIMIT]).devices
    assert [(bound.what, bound.value) for bound in device.limits] == [("write bytes", 10 << 20)]


@pytest.mark.parametrize(
    ("throttled_ns", "queued_ns", "device_ns", "word"),
    [(9, 1, 1, "throttled"), (1, 9, 1, "queued"), (1, 1, 9, "device"), (0, 0, 0, None)],
)
def test_where_the_time_went(
    throttled_ns: int, queued_ns: int, device_ns: int, word: str | None
) -> None:
    one = totals(throttled_ns=throttled_ns, queued_ns=queued_ns, device_ns=device_ns)
    (device,) = answered(HOST, 1, [one], []).devices
    assert device.wait == word
    assert where(device.kinds) == word


def test_counts_alone_make_an_answer_without_times() -> None:
    mine = {(DISK, "write"): (4, 4096)}
    every = {(DISK, "write"): (6, 8192), (DISK, "read"): (1, 512), ((9, 9), "read"): (5, 5)}
    (device,) = counted(HOST, mine, every, [LIMIT]).devices
    (kind,) = device.kinds
    assert (kind.count, kind.bytes, kind.device_ns) == (4, 4096, None)
    assert (device.others_count, device.others_bytes) == (3, 4608)
    assert (device.wait, device.device_buckets) == (None, ())
    assert "4 writes, 4 KiB" in "\n".join(view.answer(counted(HOST, mine, every, [LIMIT])))


def test_files_with_nonsense_are_read_as_nothing() -> None:
    assert list(blockio.io_max("f", "x y\n8:0\n8:0 rbps=max wbps=-1 nonsense=5\n")) == []
    assert list(blockio.service("8:0 Write many\nTotal 5\n", "")) == []
    assert list(blockio.diskstats("8 0 sda\n\nx y z 1 1 1 1 1 1 1 1\n")) == []
    assert list(blockio.io_stat("8:0 rbytes=x\n")) == []


def test_the_answer_says_what_it_waited_for() -> None:
    one = totals(throttled_ns=396 * MS, device_ns=4 * MS, throttled=3)
    lines = view.answer(answered(HOST, 1, [one, totals(0)], [LIMIT]))
    assert lines[0] == "sda (8:0)"
    assert "4 writes, 256 KiB: 1 ms in the device on average after 99 ms of waiting" in lines[1]
    assert "it waited for its limit: 99 % throttled" in lines[2]
    assert lines[2].endswith("a limit held 3 IOs back")
    assert lines[3] == "  limit on writes: 10 MiB a second, by /group/io.max"
    assert lines[4] == "  everybody else: 4 IOs of 256 KiB on the same device"
    assert view.answer(answered(HOST, 1, [], [])) == [
        "none of its IO reached a disk: it slept, or lived on what is in memory"
    ]
    assert view.answer(answered(HOST, 1, [], [], 3)) == [
        "3 more were issued to a device and not seen to end"
    ]


def test_a_hostile_name_cannot_harm_a_terminal_or_a_picture() -> None:
    io = Io(
        at_ns=1,
        device="sda",
        kind="write",
        bytes=4096,
        sector=0,
        took_ns=200 * MS,
        throttled_ns=150 * MS,
        queued_ns=0,
        device_ns=50 * MS,
        failed=True,
        pid=7,
        comm="\x1b[31m\n",
    )
    (line,) = text("disk", Happened(event=io))
    assert "\x1b" not in line
    assert "\n" not in line
    assert "(150 ms held back by a limit, 50 ms in the device), FAILED" in line
    picture = view.PICTURES["svg"](answered(HOST, 1, [totals()], []), "<b>\x1b")
    assert "<b>" not in picture
    assert "\x1b" not in picture
    assert view.PICTURES["svg"](answered(HOST, 1, [], []), "x").startswith("<svg")


def test_each_line_of_an_answer_is_one() -> None:
    lines = text("disk", Answered(answer=answered(HOST, 1, [totals(kind="flush")], [])))
    assert any("4 flushes" in line for line in lines)
    assert all("\n" not in line for line in lines)


def test_one_is_not_many() -> None:
    one = Kind(
        kind="flush",
        count=1,
        bytes=0,
        throttled_ns=0,
        queued_ns=0,
        device_ns=MS,
        longest_ns=MS,
        throttled=0,
        errors=1,
    )
    assert view._kind(one).startswith("1 flush: 1 ms")
    assert view._kind(one).endswith(", 1 FAILED")
