"""What a sensor saw of refused memory, as a case is told of it."""

import errno

import pytest

from whybox.kernel.refusals import HUGETLBFS_MAGIC, TMPFS_MAGIC, VM_HUGETLB, Refused, What, told
from whybox.kernel.sensors import refusals as sensor
from whybox.kernel.sensors.refusals import Kind, Refusal


def bus(*arguments: int, code: int = 2, magic: int = 0, mapped: bool = True) -> Refused:
    return told(
        Refusal(
            at_ns=1,
            slot=1,
            kind=Kind.BUS,
            call="",
            error=code,
            pid=7,
            comm="a\x1b[31m",
            arguments=arguments or (0, 0, 0, 0),
            magic=magic,
            device="0:42",
            inode=9 if magic else 0,
            mapped=mapped,
        )
    )


def call(name: str, *arguments: int, error: int = errno.ENOSPC, magic: int = 0) -> Refused:
    return told(
        Refusal(
            at_ns=1,
            slot=1,
            kind=Kind.IPC,
            call=name,
            error=error,
            pid=7,
            comm="a",
            arguments=arguments,
            magic=magic,
            device="0:42",
            inode=9 if magic else 0,
            mapped=False,
        )
    )


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (bus(0, VM_HUGETLB, 8 << 20, 16 << 20, magic=HUGETLBFS_MAGIC), What.HUGE_PAGES),
        (bus(0, 0, 4096, 8192, magic=TMPFS_MAGIC), What.TMPFS),
        (bus(0, 0, 8192, 8192, magic=TMPFS_MAGIC), What.BEYOND_END),
        (bus(0, 0, 8192, 4096, magic=0xEF53), What.BEYOND_END),
        (bus(0, 0, 0, 4096, magic=0xEF53), What.OTHER),
        (bus(code=4), What.BROKEN),
        (bus(code=0), What.OTHER),
        (bus(0, VM_HUGETLB, 0, 0, mapped=False), What.OTHER),
    ],
)
def test_a_sigbus_is_told_by_what_was_mapped(one: Refused, what: What) -> None:
    assert one.what is what
    assert one.errno is None
    assert one.comm == "a\\x1b[31m"


def test_a_fault_without_room_tells_how_large_the_file_is() -> None:
    assert bus(0, 0, 4096, 8192, magic=TMPFS_MAGIC).size_bytes == 8192
    assert bus(0, 0, 9000, 8192, magic=TMPFS_MAGIC).size_bytes is None


def test_calls_are_told_by_what_they_asked_for() -> None:
    mmap = call("mmap", 0, 16 << 20, 3, 0x40022 | 30 << 26, error=errno.ENOMEM)
    assert (mmap.what, mmap.size_bytes, mmap.page_bytes) == (What.HUGE_PAGES, 16 << 20, 1 << 30)
    segment = call("shmget", 0, 4096, 0o1600, 0)
    assert (segment.what, segment.key, segment.how) == (What.SEGMENT, None, "shmget ENOSPC")
    assert call("shmget", 42, 4096, 0o600, 0).key == 42
    huge = call("shmget", 0, 4 << 20, 0o5600, 0, error=errno.ENOMEM)
    assert (huge.what, huge.size_bytes) == (What.HUGE_PAGES, 4 << 20)
    assert call("semget", 0, 300, 0o1600, 0).size_bytes == 300
    assert call("msgget", 5, 0o1600, 0, 0).key == 5
    write = call("write", 3, 0, 4096, 0, magic=TMPFS_MAGIC)
    assert (write.what, write.device, write.size_bytes) == (What.TMPFS, "0:42", None)
    assert call("fallocate", 3, 0, 4096, 8192, magic=TMPFS_MAGIC).size_bytes == 12288


def test_a_refusal_is_decoded() -> None:
    raw = sensor._REFUSAL.pack(5, 2, 1, 9, 12, 7, 8, 1, 2, 3, 4, 0x958458F6, 6, 42, 0, b"a\0b")
    one = sensor.refusal(raw)
    assert (one.kind, one.call, one.error, one.comm) == (Kind.MAPS, "mmap", 12, "a")
    assert (one.arguments, one.magic, one.device) == ((1, 2, 3, 4), HUGETLBFS_MAGIC, "0:42")


def test_every_call_that_is_looked_at_exists() -> None:
    assert len(sensor.table()) == len(sensor._CALLS)
