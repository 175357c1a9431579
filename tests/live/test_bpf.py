"""The loader: every kind of program attached and every kind of map read, with known numbers."""

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from msgspec import structs

from tests.live.conftest import require
from whybox.kernel import task
from whybox.kernel.bpf import ability, maps, objects
from whybox.kernel.bpf.objects import Object, Refused, Spec, loaded
from whybox.kernel.host import Host
from whybox.kernel.libc import mount, umount2

SPEC = Spec(
    name="loader",
    programs=(("on_tracepoint",),),
    optional=("on_raw", "on_typed", "on_kprobe", "on_uprobe", "on_clock", "each_task", "add"),
    falls_back="nothing at all: it is a test",
)
TRACEPOINT, RAW, TYPED, KPROBE, UPROBE, CLOCK = range(1, 7)
WORD, KEY = struct.Struct("=Q"), struct.Struct("=I")

libc = ctypes.CDLL(None)


@pytest.fixture(autouse=True)
def _objects(monkeypatch: pytest.MonkeyPatch) -> None:
    require(ability.why_not(Host()))
    monkeypatch.setattr(objects, "SENSORS", Path(__file__).parent / "bpf")


@contextmanager
def watching_me(spec: Spec = SPEC, hz: int | None = None) -> Iterator[Object]:
    me = {"settings": [(KEY.pack(0), WORD.pack(os.getpid()))]}
    with loaded(Host(), spec, before=me, perf_hz=hz, stats=True) as object:
        yield object


def counted(object: Object, kind: int) -> int:
    value = object.map("by_kind").get(KEY.pack(kind))
    return 0 if value is None else WORD.unpack(value)[0]


def only(*names: str) -> Spec:
    """The tracepoint, which is always there, and these."""
    return structs.replace(SPEC, optional=names)


def test_a_tracepoint_is_attached_and_every_map_is_read() -> None:
    with watching_me(only()) as object:
        ring = object.ring()
        for _ in range(23):
            libc.getppid()
        assert counted(object, TRACEPOINT) == 23
        assert dict(object.map("by_kind").items()) == {KEY.pack(1): WORD.pack(23)}
        per_cpu = object.map("percpu").per_cpu(KEY.pack(0))
        assert len(per_cpu) == maps.possible_cpus()
        assert sum(WORD.unpack(value)[0] for value in per_cpu) == 23
        assert ring.read() == [KEY.pack(77)] * 23
        (stack,) = {key for key, _ in object.map("recent").items()}
        assert KEY.unpack(stack)[0] < 64
        frames = struct.unpack("=127Q", object.map("stacks").get(stack) or b"")
        assert any(frames)
        assert object.lost() == 0
        cost = object.cost()
        assert cost is not None
        assert cost.runs >= 23


def test_a_raw_and_a_typed_tracepoint_count_forks_and_execs() -> None:
    with watching_me(only("on_raw", "on_typed")) as object:
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os.execv("/bin/true", ["true"])
            os.waitpid(child, 0)
        assert counted(object, TYPED) == 3
        assert counted(object, RAW) == 0  # the children exec, and are not watched


def test_a_kprobe_counts_or_its_lack_is_said() -> None:
    with watching_me(only("on_kprobe")) as object:
        if "on_kprobe" not in object.choice.taken:
            assert object.choice.left["on_kprobe"] == "no kprobes (CONFIG_KPROBES)"
            return
        for _ in range(17):
            os.close(os.open("/dev/null", os.O_RDONLY))
        assert counted(object, KPROBE) == 17


def test_a_uprobe_counts_calls_of_a_function_of_a_program() -> None:
    path, offset = of_libc("getppid")
    with watching_me(only("on_uprobe")) as object:
        object.attach_uprobe("on_uprobe", path, offset, pid=os.getpid())
        for _ in range(5):
            libc.getppid()
        assert counted(object, UPROBE) == 5


def of_libc(name: str) -> tuple[str, int]:
    """The file of our C library, and where in it a function begins."""
    maps_of_us = Path("/proc/self/maps").read_text().splitlines()
    path = next(line.split()[-1] for line in maps_of_us if "libc.so" in line or "libc-" in line)
    with open(path, "rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".dynsym")
        assert isinstance(symbols, SymbolTableSection)
        found = symbols.get_symbol_by_name(name)
        assert found
        address = found[0]["st_value"]
        for segment in elf.iter_segments("PT_LOAD"):
            begin = segment["p_vaddr"]
            if begin <= address < begin + segment["p_filesz"]:
                return path, address - begin + segment["p_offset"]
    raise AssertionError(f"{name} is in no segment of {path}")


def test_a_clock_interrupts_us_while_we_run() -> None:
    with watching_me(only("on_clock"), hz=99) as object:
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
        assert 15 <= counted(object, CLOCK) <= 200


def test_an_iterator_sees_every_task() -> None:
    with watching_me(only("each_task")) as object:
        seen = {pid for (pid,) in KEY.iter_unpack(object.read_iterator("each_task"))}
    assert os.getpid() in seen
    assert set(task.thread_ids(Host(), os.getpid())) <= seen
    assert 2 in seen  # kthreadd


def test_a_syscall_program_runs_when_told_and_writes_into_our_memory() -> None:
    with watching_me(only("add")) as object:
        if "add" not in object.choice.taken:
            assert "system call" in object.choice.left["add"]
            return
        memory = object.map("memory").memory()
        assert object.run("add", struct.pack("=QQ", 40, 2)) == 42
        assert WORD.unpack_from(memory, 8)[0] == 42


def test_a_map_can_be_pinned_and_found_again(tmp_path: Path) -> None:
    mount("bpf", str(tmp_path), "bpf")
    try:
        with watching_me(only()) as object:
            mine = object.map("by_kind")
            mine.pin(f"{tmp_path}/by_kind")
            libc.getppid()
        again = maps.pinned(f"{tmp_path}/by_kind", mine)
        assert again.get(KEY.pack(TRACEPOINT)) == WORD.pack(1)
        os.close(again.fd)
        os.unlink(tmp_path / "by_kind")
    finally:
        umount2(str(tmp_path))


def test_only_chosen_programs_are_loaded() -> None:
    with watching_me(only("on_typed")) as object:
        assert set(object.choice.taken) == {"on_tracepoint", "on_typed"}
        assert object.attached == (
            "tracepoint/syscalls/sys_enter_getppid",
            "tp_btf/sched_process_fork",
        )


def test_of_a_group_the_first_that_the_kernel_takes_is_loaded() -> None:
    """A tracepoint that no kernel has stands before one that this has."""
    kprobes = Host().exists(ability.KPROBES)
    spec = structs.replace(SPEC, programs=(("on_kprobe", "on_tracepoint"),), optional=())
    with watching_me(spec) as object:
        taken = "on_kprobe" if kprobes else "on_tracepoint"
        assert set(object.choice.taken) == {taken}


def test_a_map_that_is_full_says_so() -> None:
    with watching_me(only()) as object:
        found = object.map("by_kind")
        for number in range(64):
            found.set(KEY.pack(number), WORD.pack(number))
        with pytest.raises(OSError, match="too long"):
            found.set(KEY.pack(64), WORD.pack(64))
        assert len(found.items()) == 64
        found.delete(KEY.pack(7))
        found.delete(KEY.pack(7))
        assert found.get(KEY.pack(7)) is None


def test_an_object_that_was_not_built_is_a_reason_with_a_way_out(tmp_path: Path) -> None:
    with (
        pytest.raises(Refused, match="hatch_build"),
        watching_me(structs.replace(SPEC, name="nonsense")),
    ):
        pass
