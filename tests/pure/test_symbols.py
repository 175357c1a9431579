"""Names of functions: of the kernel, of ELF files that may be made to harm, of living processes."""

import ctypes
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whybox.kernel.elfsymbols import ElfSymbols, ordered, unwound
from whybox.kernel.host import Host
from whybox.kernel.symbols import Frame, KernelSymbols, hidden, plain
from whybox.kernel.usermaps import PerfMap, Regions, origin, perf_map, read_regions, regions
from whybox.kernel.usersymbols import Image, ImageKey, UserSymbols

KALLSYMS = """\
ffffffff81000000 T _text
ffffffff81000100 T vfs_read
ffffffff81000200 D some_data
ffffffff81000300 T __sched_text_start
ffffffff81000300 T schedule
ffffffff81000400 t mutex_lock
ffffffff81000500 T __sched_text_end
ffffffffc0001000 t ext4_read\t[ext4]
"""


def kernel(tmp_path: Path, text: str = KALLSYMS) -> KernelSymbols:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kallsyms").write_text(text)
    return KernelSymbols(Host(str(tmp_path)))


def test_a_kernel_address_is_in_the_function_before_it(tmp_path: Path) -> None:
    symbols = kernel(tmp_path)
    assert symbols.frame(0xFFFFFFFF81000180) == Frame(name="vfs_read", file="kernel", kernel=True)
    assert symbols.frame(0xFFFFFFFFC0001004).file == "ext4"
    assert symbols.frame(0xFFFFFFFF810002FF).name == "vfs_read"  # data is no function
    assert not symbols.frame(0x1000).named


def test_what_waits_is_told_apart_as_the_kernel_does(tmp_path: Path) -> None:
    symbols = kernel(tmp_path)
    assert symbols.waits(0xFFFFFFFF81000450)
    assert not symbols.waits(0xFFFFFFFF81000500)
    assert not symbols.waits(0xFFFFFFFF81000110)


def test_a_kernel_that_hides_its_addresses_names_nothing_and_that_is_said(tmp_path: Path) -> None:
    symbols = kernel(tmp_path, "0000000000000000 T vfs_read\n" * 3)
    assert not symbols.frame(0xFFFFFFFF81000100).named
    assert hidden(Host(str(tmp_path))) is None
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/kptr_restrict").write_text("2\n")
    assert "kptr_restrict" in str(hidden(Host(str(tmp_path))))


def test_without_kallsyms_nothing_is_named(tmp_path: Path) -> None:
    assert not KernelSymbols(Host(str(tmp_path))).frame(0xFFFFFFFF81000100).named


def test_rust_and_cxx_names_are_made_plain_only_where_that_is_easy() -> None:
    assert plain("_ZN5alloc7raw_vec19finish_grow17h00112233445566ffE") == "_ZN5alloc7raw_vec19" + (
        "finish_grow17h00112233445566ffE"
    )  # a length that lies
    assert plain("_ZN5alloc7raw_vec11finish_grow17h00112233445566ffE") == (
        "alloc::raw_vec::finish_grow"
    )
    assert plain("_ZNK3foo3barEv") == "foo::bar"
    assert plain("_Z3fooIiEvT_") == "_Z3fooIiEvT_"
    assert plain("_ZN") == "_ZN"
    assert plain("_Z") == "_Z"


@given(st.text(alphabet="_ZNKE0123456789aIh$.", max_size=60))
def test_no_name_is_too_strange(name: str) -> None:
    assert isinstance(plain("_Z" + name), str)


# An ELF file by hand: one segment, a table of symbols, their strings, notes, .eh_frame.

TEXT, BASE = 0x1000, 0x400000


def elf(functions: dict[str, tuple[int, int]], *, frames: bytes = b"") -> bytes:
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in functions)
    symbols = bytes(24)
    for name, (address, size) in functions.items():
        place = strings.index(b"\0" + name.encode() + b"\0") + 1
        symbols += struct.pack("<IBBHQQ", place, 0x12, 0, 5, address, size)
    names = b"\0.eh_frame\0.symtab\0.strtab\0"
    note = struct.pack("<III4s4s", 4, 4, 3, b"GNU\0", b"\xc0\xde\xba\xbe")
    header = 64 + 2 * 56
    at, body, rows = header, b"", [bytes(64)]
    parts = (
        (2, symbols, 0, 2, 11),
        (3, strings, 0, 0, 19),
        (3, names, 0, 0, 19),
        (1, frames, BASE + 0x8000, 0, 1),
        (1, bytes(0x100), BASE + TEXT, 0, 10),
    )
    for kind, content, address, link, name_at in parts:
        rows.append(
            struct.pack(
                "<IIQQQQIIQQ",
                name_at,
                kind,
                0,
                address,
                at + len(body),
                len(content),
                link,
                0,
                1,
                0,
            )
        )
        body += content
    note_at = at + len(body)
    body += note
    table = at + len(body)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 3, 62, 1, 0, 64, table, 0, 64, 56, 2, 64, len(rows), 3
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, TEXT, BASE + TEXT, 0, 0x2000, 0x2000, 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(note), len(note), 4)
    return head + load + notes + body + b"".join(rows)


@contextmanager
def loaded(tmp_path: Path, raw: bytes) -> Iterator[ElfSymbols]:
    path = tmp_path / "file"
    path.write_bytes(raw)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield ElfSymbols(descriptor)
    finally:
        os.close(descriptor)


def test_an_elf_file_tells_addresses_names_and_its_build_id(tmp_path: Path) -> None:
    raw = elf({"main": (BASE + TEXT, 0x10), "_ZN1a1bEv": (BASE + TEXT + 0x20, 0)})
    with loaded(tmp_path, raw) as file:
        assert file.named
        assert file.build_id == "c0debabe"
        assert file.address(TEXT + 5) == BASE + TEXT + 5
        assert file.address(5) is None
        assert file.name(BASE + TEXT + 0xF) == "main"
        assert file.name(BASE + TEXT + 0x10) is None  # behind its end
        assert file.name(BASE + TEXT + 0x30) == "_ZN1a1bEv"  # tells no size: to the section's end
        assert file.name(BASE + TEXT + 0x100) is None


def frame_table(*functions: tuple[int, int]) -> bytes:
    """``.eh_frame`` at BASE + 0x8000, as compilers write it."""
    entry = struct.pack("<IB3sBBBBB3x", 0, 1, b"zR\0", 1, 0x78, 16, 1, 0x1B)
    raw = struct.pack("<I", len(entry)) + entry
    for address, size in functions:
        place = len(raw) + 8
        start = address - (BASE + 0x8000 + place)
        body = struct.pack("<IiIB3x", len(raw) + 4, start, size, 0)
        raw += struct.pack("<I", len(body)) + body
    return raw + bytes(4)


def test_without_names_functions_are_told_by_how_they_are_unwound(tmp_path: Path) -> None:
    first, second = BASE + TEXT + 0x40, BASE + TEXT + 0x80
    raw = elf({}, frames=frame_table((first, 0x30), (second, 0x20)))
    with loaded(tmp_path, raw) as file:
        assert not file.named
        assert file.name(first) is None
        assert file.start(first + 0x2F) == first
        assert file.start(second + 1) == second
        assert file.start(first + 0x35) == first + 0x35  # in none


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    descriptor = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="regular"):
        ElfSymbols(descriptor)
    os.close(descriptor)


def test_tables_that_lie_about_their_size_do_not_fill_memory(tmp_path: Path) -> None:
    raw = bytearray(elf({"main": (BASE + TEXT, 0x10)}))
    table = struct.unpack_from("<Q", raw, 40)[0]
    struct.pack_into("<Q", raw, table + 64 + 32, 1 << 62)  # the size of the symbols
    began = time.monotonic()
    with loaded(tmp_path, bytes(raw)) as file:
        assert file.address(TEXT) == BASE + TEXT
    assert time.monotonic() - began < 5


def test_countless_sections_are_refused(tmp_path: Path) -> None:
    raw = bytearray(elf({"main": (BASE + TEXT, 0x10)}))
    struct.pack_into("<H", raw, 60, 0)
    with pytest.raises(OSError, match="countless"), loaded(tmp_path, bytes(raw)):
        pass
    struct.pack_into("<H", raw, 60, 0xFFFF)
    with pytest.raises(OSError, match="too many"), loaded(tmp_path, bytes(raw)):
        pass


SOUND = elf({"main": (BASE + TEXT, 16)}, frames=frame_table((BASE + TEXT, 16)))


@given(
    changes=st.lists(st.tuples(st.integers(4, len(SOUND) - 1), st.integers(0, 255)), max_size=12),
    length=st.integers(0, len(SOUND)),
)
@settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_broken_file_does_harm(
    tmp_path: Path, changes: list[tuple[int, int]], length: int
) -> None:
    raw = bytearray(SOUND)
    for place, value in changes:
        raw[place] = value
    try:
        with loaded(tmp_path, bytes(raw[:length])) as file:
            for address in (0, BASE + TEXT, (1 << 64) - 1):
                file.name(address)
                file.start(address)
                file.address(address)
    except OSError:
        pass


@given(st.binary(max_size=400))
def test_no_frame_table_is_read_for_ever(raw: bytes) -> None:
    ordered(list(unwound(raw, 0x1000)))


def test_what_may_be_executed_is_taken_from_the_maps() -> None:
    raw = (
        b"5000-6000 r--p 00000000 fe:00 42  /bin/a\n"
        b"6000-7000 r-xp 00001000 fe:00 42  /bin/a b (deleted)\n"
        b"7000-8000 rwxp 00000000 00:00 0\n"
        b"nonsense\n"
        b"zz-1 r-xp 0 0 0 x\n"
        b"9000-a000 r-xp 00000000 00:00 0  [vdso]\n"
    )
    found = Regions(regions(raw))
    assert [one.start for one in found.all] == [0x6000, 0x7000, 0x9000]
    region = found.at(0x6FFF)
    assert region is not None
    assert region.file == "a b"
    assert not region.anonymous
    assert [one.anonymous for one in found.all] == [False, True, False]
    assert found.at(0x8000) is None
    assert found.at(0x10) is None


@given(st.binary(max_size=300))
def test_no_perf_map_is_too_strange(raw: bytes) -> None:
    assert isinstance(perf_map(raw), PerfMap)


def test_a_perf_map_with_impossible_numbers_is_read_all_the_same() -> None:
    found = perf_map(b"ffffffffffffffffff ffffffffffffffffffff x\n-5 3 y\n10 8 good\n")
    assert found.name(0x12) == "good"


class _Told:
    """A source that tells of one process."""

    def __init__(self, key: ImageKey, image: Image) -> None:
        self.descriptor, self._end = os.pipe()
        self._new = [(key, image)]

    def news(self) -> Iterable[tuple[ImageKey, Image]]:
        new, self._new = self._new, []
        return new

    def seen(self) -> Iterable[tuple[ImageKey, Image]]:
        return ()

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self._end)


@contextmanager
def named(pid: int, *, stack: int | None = None) -> Iterator[tuple[UserSymbols, ImageKey]]:
    code, started = origin(pid)
    key = ImageKey(tgid=pid, exec=3)
    image = Image(start_code=code, start_stack=stack or started, inode=0, comm="me")
    told = _Told(key, image)
    symbols = UserSymbols(told)
    try:
        symbols.settle()
        yield symbols, key
    finally:
        symbols.close()
        told.close()


def libc_function() -> int:
    address = ctypes.cast(ctypes.CDLL(None).getppid, ctypes.c_void_p).value
    assert address is not None
    return address


@pytest.mark.skipif(os.geteuid() != 0, reason="other processes' files are read as root")
def test_a_function_of_a_living_process_is_named() -> None:
    with named(os.getpid()) as (symbols, key):
        frame = symbols.frame(key, libc_function())
        assert frame.name.endswith("getppid")
        assert frame.file.startswith("libc")
        assert symbols.comm(key) == "me"
        assert symbols.known(key)
        assert symbols.frame(key, 16) == Frame(name="[unknown]", file="", named=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="other processes' files are read as root")
def test_a_process_that_runs_another_program_by_now_is_not_taken_for_it() -> None:
    with named(os.getpid(), stack=4096) as (symbols, key):
        assert not symbols.known(key)
        assert not symbols.frame(key, libc_function()).named


def test_the_regions_of_this_process_hold_its_functions() -> None:
    region = read_regions(os.getpid()).at(libc_function())
    assert region is not None
    assert region.file.startswith("libc")


class _Stuck(_Told):
    """A source, or a process behind it, that never answers."""

    go_on = threading.Event()

    def news(self) -> Iterable[tuple[ImageKey, Image]]:
        self.go_on.wait()
        return ()


def test_what_never_answers_holds_up_nobody() -> None:
    told = _Stuck(ImageKey(tgid=1, exec=1), Image(start_code=1, start_stack=1, inode=0, comm="x"))
    symbols = UserSymbols(told)
    began = time.monotonic()
    symbols.settle(0.2)
    symbols.close()
    assert symbols.late
    assert time.monotonic() - began < 5
    told.go_on.set()
