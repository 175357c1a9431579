"""How a program decides how many threads or workers it runs: its runtime, and the knob for it.

A runtime is told by the files that a process has mapped (``/proc/PID/maps``), by its program
(``/proc/PID/exe``) and, of Go, by what the linker wrote into the file. All of it is the
container's, and so is read in bounds and made harmless.
"""

import os
import re
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress

from msgspec import Struct

from whybox.kernel import task
from whybox.kernel.host import Host, ParseError, decode, printable

_MOST_THREADS, _MOST_WORDS, _MOST_VALUE = 64, 64, 60
_MOST_HEADERS, _NOTE_BYTES, _DATA_BYTES = 64, 4096, 1 << 16
_MOST_OFFSET, _MOST_BYTES = (1 << 40) - 1, 1 << 20


class Runtime(Struct, frozen=True, kw_only=True):
    """One way in which programs count CPUs."""

    name: str
    variable: str | None
    """The variable of the environment that sets it."""
    knob: str
    """How it is set; ``{n}`` stands for the number."""


RUNTIMES: Mapping[str, Runtime] = {
    one.name: one
    for one in (
        Runtime(name="Go", variable="GOMAXPROCS", knob="GOMAXPROCS={n}"),
        Runtime(name="JVM", variable="JAVA_TOOL_OPTIONS", knob="java -XX:ActiveProcessorCount={n}"),
        Runtime(name="OpenMP", variable="OMP_NUM_THREADS", knob="OMP_NUM_THREADS={n}"),
        Runtime(name="OpenBLAS", variable="OPENBLAS_NUM_THREADS", knob="OPENBLAS_NUM_THREADS={n}"),
        Runtime(name="MKL", variable="MKL_NUM_THREADS", knob="MKL_NUM_THREADS={n}"),
        Runtime(name="oneTBB", variable=None, knob="tbb::global_control (max_allowed_parallelism)"),
        Runtime(name=".NET", variable="DOTNET_PROCESSOR_COUNT", knob="DOTNET_PROCESSOR_COUNT={n}"),
        Runtime(
            name="Python multiprocessing",
            variable="PYTHON_CPU_COUNT",
            knob="Pool({n}), ProcessPoolExecutor(max_workers={n}), or PYTHON_CPU_COUNT={n} (3.13)",
        ),
        Runtime(
            name="Node.js",
            variable="UV_THREADPOOL_SIZE",
            knob="UV_THREADPOOL_SIZE={n}, and as many workers of cluster",
        ),
        Runtime(name="Erlang", variable="ERL_FLAGS", knob='ERL_FLAGS="+S {n}"'),
        Runtime(name="make", variable="MAKEFLAGS", knob="make -j{n}"),
        Runtime(name="ninja", variable=None, knob="ninja -j{n}"),
        Runtime(name="nginx", variable=None, knob="worker_processes {n};"),
        Runtime(name="gunicorn", variable="WEB_CONCURRENCY", knob="gunicorn --workers {n}"),
    )
}

#: By a file that is mapped.
_MAPPED = (
    (re.compile(r"libjvm\.so"), "JVM"),
    (re.compile(r"libcoreclr\.so"), ".NET"),
    (re.compile(r"lib(gomp|omp|iomp5)[-.\w]*\.so"), "OpenMP"),
    (re.compile(r"lib(scipy_)?openblas"), "OpenBLAS"),
    (re.compile(r"libmkl_"), "MKL"),
    (re.compile(r"libtbb\.so"), "oneTBB"),
)
#: By the program.
_PROGRAMS = {
    "node": "Node.js",
    "nodejs": "Node.js",
    "beam.smp": "Erlang",
    "make": "make",
    "gmake": "make",
    "ninja": "ninja",
    "nginx": "nginx",
    "gunicorn": "gunicorn",
}
#: By the name that it gives itself, where its program is an interpreter.
_TITLES = (
    (re.compile(r"nginx: (master|worker)"), "nginx"),
    (re.compile(r"(^|/)gunicorn\b"), "gunicorn"),
)
_JOBS = re.compile(r"^(?:-j|--jobs=)(\d+)$")
_PROCESSORS = re.compile(r"-XX:(ActiveProcessorCount=\d+|-UseContainerSupport)")


class Program(Struct, frozen=True, kw_only=True):
    """One process, and how it counts CPUs; all text harmless to print."""

    pid: int
    ppid: int
    comm: str
    runtime: str | None = None
    """A name of ``RUNTIMES``; ``None``: none that is known."""
    version: str | None = None
    """Of Go, such as ``go1.22.4``."""
    setting: str | None = None
    """The knob as it stands, such as ``GOMAXPROCS=8``; ``None``: it was left to the runtime."""
    number: int | None = None
    """What that says."""
    why: str = ""
    """What tells the runtime."""


def program(host: Host, pid: int) -> Program | None:
    """A process as it counts CPUs; ``None`` when it is gone."""
    return host.remembered(f"sizing {pid}", lambda: _program(host, pid))


def _program(host: Host, pid: int) -> Program | None:
    try:
        status = task.stat(host, pid)
    except (OSError, ParseError):
        return None
    plain = Program(pid=pid, ppid=status.ppid, comm=printable(status.comm))
    if _may_block(host, pid):
        return plain
    words = _words(host, pid)
    name, why = _named(host, pid, words)
    if name is None:
        return plain
    setting = _setting(RUNTIMES[name], words, _environment(host, pid))
    return Program(
        pid=pid,
        ppid=plain.ppid,
        comm=plain.comm,
        runtime=name,
        version=go_version(host, pid) if name == "Go" else None,
        setting=setting,
        number=_number(setting),
        why=why,
    )


def _may_block(host: Host, pid: int) -> bool:
    """Whether a thread is stuck in the kernel: it may hold the lock that looking takes."""
    try:
        threads = task.thread_ids(host, pid)[:_MOST_THREADS]
        return any(task.stat(host, tid).state == "D" for tid in threads)
    except (OSError, ParseError):
        return True


def _words(host: Host, pid: int) -> tuple[str, ...]:
    """The beginning of its command line."""
    raw = _raw(host, f"/proc/{pid}/cmdline")
    return tuple(decode(word[:4096]) for word in raw.split(b"\0")[:_MOST_WORDS])


def _named(host: Host, pid: int, words: tuple[str, ...]) -> tuple[str | None, str]:
    """Its runtime, and what tells so."""
    try:
        exe = host.link(f"/proc/{pid}/exe").removesuffix(" (deleted)").rpartition("/")[2]
    except OSError:
        exe = ""
    known = _PROGRAMS.get(exe)
    if known is not None:
        return known, f"/proc/{pid}/exe: {printable(exe)}"
    for pattern, name in _TITLES:
        if any(pattern.search(word) for word in words[:2]):
            return name, f"/proc/{pid}/cmdline: {printable(words[0][:_MOST_VALUE])}"
    files = mapped(host, pid)
    for pattern, name in _MAPPED:
        hit = next((file for file in sorted(files) if pattern.match(file)), None)
        if hit is not None:
            return name, f"/proc/{pid}/maps: {printable(hit[:_MOST_VALUE])}"
    if _is_multiprocessing(files):
        return "Python multiprocessing", f"/proc/{pid}/maps: _multiprocessing, and a semaphore"
    if go_version(host, pid) is not None:
        return "Go", f"/proc/{pid}/exe: the note of the Go linker"
    return None, ""


def mapped(host: Host, pid: int) -> frozenset[str]:
    """The files that a process has mapped, by the last part of their paths."""
    raw = _raw(host, f"/proc/{pid}/maps")
    paths = {fields[5] for line in raw.splitlines() if len(fields := line.split(None, 5)) == 6}
    return frozenset(decode(path).rpartition("/")[2] for path in paths)


def _is_multiprocessing(files: Iterable[str]) -> bool:
    """A pool's workers share semaphores (``multiprocessing/synchronize.py``)."""
    names = tuple(files)
    module = any(name.startswith("_multiprocessing.") for name in names)
    return module and any(name.startswith("sem.") for name in names)


def _environment(host: Host, pid: int) -> dict[str, str]:
    """The variables that are knobs, and no other."""
    wanted = {one.variable for one in RUNTIMES.values()}
    entries = _raw(host, f"/proc/{pid}/environ").split(b"\0")
    pairs = (decode(entry).partition("=")[::2] for entry in entries)
    return {name: value for name, value in pairs if name in wanted}


def _raw(host: Host, path: str) -> bytes:
    """A file's beginning, empty where it may not be read.

    The host does not remember it, as it would for a capture: there may be secrets in it.
    """
    try:
        descriptor = os.open(host.path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    parts, size = [], 0
    try:
        while size < _MOST_BYTES and (part := os.read(descriptor, 1 << 16)):
            parts.append(part)
            size += len(part)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _setting(runtime: Runtime, words: Iterable[str], environment: Mapping[str, str]) -> str | None:
    """The knob as somebody set it."""
    if runtime.name in ("make", "ninja"):
        return _jobs(tuple(words)) or _jobs(tuple(environment.get("MAKEFLAGS", "").split()))
    if runtime.name == "JVM":
        options = " ".join((*words, environment.get("JAVA_TOOL_OPTIONS", "")))
        found = _PROCESSORS.search(options)
        return None if found is None else found[0]
    value = environment.get(runtime.variable or "")
    return None if not value else printable(f"{runtime.variable}={value[:_MOST_VALUE]}")


def _jobs(words: tuple[str, ...]) -> str | None:
    for word, following in zip(words, (*words[1:], ""), strict=False):
        if _JOBS.match(word):
            return word
        if word in ("-j", "--jobs") and following.isdigit():
            return f"-j {following[:6]}"
    return None


def _number(setting: str | None) -> int | None:
    found = re.search(r"(\d{1,6})$", setting or "")
    return None if found is None else int(found[1])


def go_version(host: Host, pid: int) -> str | None:
    """What built the program, ``go`` where that is not told; ``None``: it is not Go's."""
    return host.remembered(f"go {pid}", lambda: built_with(host.path(f"/proc/{pid}/exe")))


def built_with(path: str) -> str | None:
    """The Go that built a file, as ``go_version`` tells of a process."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _built(descriptor)
    except (OSError, struct.error):
        return None
    finally:
        os.close(descriptor)


def _built(descriptor: int) -> str | None:
    """The note of Go's linker, then the version in the data (``debug/buildinfo``)."""
    segments = list(_segments(os.pread(descriptor, 64 + 56 * _MOST_HEADERS, 0)))
    notes = (os.pread(descriptor, _NOTE_BYTES, at) for kind, _, at in segments if kind == 4)
    if not any(is_go(note) for note in notes):
        return None
    at = _section(descriptor, b".go.buildinfo")
    if at is None:
        at = next((at for kind, flags, at in segments if kind == 1 and flags & 2), 0)
    return built_by(os.pread(descriptor, _DATA_BYTES, at & _MOST_OFFSET)) or "go"


def _section(descriptor: int, wanted: bytes) -> int | None:
    """Where a section of that name is in the file."""
    header = os.pread(descriptor, 64, 0)
    start = struct.unpack_from("<Q", header, 40)[0]
    size, count, names = struct.unpack_from("<HHH", header, 58)
    if size != 64 or names >= count or start >= 1 << 40:
        return None
    table = os.pread(descriptor, 64 * min(count, _MOST_HEADERS), start)
    rows = list(struct.iter_unpack("<II4QII2Q", table[: len(table) // 64 * 64]))
    if names >= len(rows):
        return None
    strings = os.pread(descriptor, _NOTE_BYTES, rows[names][4] & _MOST_OFFSET)
    return next((row[4] for row in rows if _string(strings, row[0]) == wanted), None)


def _string(strings: bytes, at: int) -> bytes:
    return strings[at : at + 64].split(b"\0", 1)[0]


def _segments(header: bytes) -> Iterable[tuple[int, int, int]]:
    """Kind, flags and place of every segment of a 64-bit file of this byte order."""
    if header[:6] != b"\x7fELF\x02\x01":
        return
    start, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
    for number in range(min(count, _MOST_HEADERS)):
        with suppress(struct.error):
            place = (start & _MOST_OFFSET) + 56 * number
            kind, flags, at = struct.unpack_from("<IIQ", header, place)
            yield kind, flags, at & _MOST_OFFSET


def is_go(notes: bytes) -> bool:
    r"""Whether there is a note of Go's (``cmd/link``: name ``Go``, type 4).

    >>> is_go(bytes.fromhex("04000000 04000000 04000000") + b"Go\0\0abcd")
    True
    """
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        if kind == 4 and notes[at + 12 : at + 16] == b"Go\0\0":
            return True
        at += 12 + (name + 3 & ~3) + (size + 3 & ~3)
    return False


def built_by(data: bytes) -> str | None:
    r"""The version of Go in a program's data, as it is written since go1.18.

    >>> built_by(b"\0" * 16 + b"\xff Go buildinf:\x08\x02" + b"\0" * 16 + b"\x08go1.22.4...")
    'go1.22.4'
    """
    at = data.find(b"\xff Go buildinf:")
    if at < 0 or at + 33 > len(data) or not data[at + 15] & 2:
        return None
    size = data[at + 32]
    version = data[at + 33 : at + 33 + size]
    return version.decode() if re.fullmatch(rb"go[\w.]{1,30}", version) else None
