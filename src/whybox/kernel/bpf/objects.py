"""One BPF object, from its file to what is attached, and back.

    with loaded(host, SPEC) as object:
        object.map("counts").items()

An object says in its ``Spec`` what it hooks, what may stand in for what, and what is done where
the kernel offers none of it. Everything is held by descriptors of this process, so it is gone with
the process, however that ends.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from msgspec import Struct

from whybox.kernel import perf, tracefs
from whybox.kernel.bpf import ability, libbpf, maps
from whybox.kernel.bpf.maps import Map, Ring
from whybox.kernel.host import Host

#: Where the compiled objects of the sensors are: beside their sources.
SENSORS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "sensors")

#: ``struct bpf_prog_info`` up to ``recursion_misses`` (include/uapi/linux/bpf.h).
_INFO_SIZE, _RUN_TIME_AT = 224, 192
_STATS_RUN_TIME = 0

#: ``struct bpf_test_run_opts`` (tools/lib/bpf/bpf.h) and where ``retval`` is in it.
_RUN = struct.Struct("=QQQIIQQIIIiIIII")
_RUN_RESULT_AT = 56


class Spec(Struct, frozen=True, kw_only=True):
    """A BPF object: what it hooks, and what happens where that is not to be had."""

    name: str
    """Its file is ``sensors/NAME.bpf.o``."""
    programs: tuple[tuple[str, ...], ...]
    """Groups of functions in C. Of each group one is loaded, the first that the kernel can take."""
    optional: tuple[str, ...] = ()
    """Of these, none need be there: what they see is then missing, and said to be."""
    falls_back: str
    """What is done where a group has no program that the kernel can take, in a sentence."""

    @property
    def file(self) -> str:
        """The compiled object."""
        return f"{SENSORS}/{self.name}.bpf.o"


class Refused(OSError):
    """The kernel does not take the object; the text is the reason. ``log`` is the verifier's."""

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(0, reason)
        self.log = log


class Choice(Struct, frozen=True, kw_only=True):
    """Which programs of an object this kernel takes."""

    taken: Mapping[str, str]
    """Function to section, such as ``{"on_switch": "tp_btf/sched_switch"}``."""
    left: Mapping[str, str] = {}
    """Function to what the kernel lacks for it."""


class Cost(Struct, frozen=True, kw_only=True):
    """What the programs of an object have cost since they were attached."""

    run_ns: int
    runs: int
    missed: int
    """Runs that the kernel left out, since the program was running on that CPU already."""


class Object:
    """A loaded object with its programs attached."""

    def __init__(self, pointer: int, choice: Choice, *, stats: bool) -> None:
        self._pointer = pointer
        self._maps: dict[str, Map] = {}
        self._stack = ExitStack()
        self._fds: dict[str, int] = {}
        self._with_stats = stats
        self.choice = choice

    @property
    def attached(self) -> tuple[str, ...]:
        """The sections of its programs: what it hooks."""
        return tuple(self.choice.taken.values())

    def map(self, name: str) -> Map:
        """One of its maps by its name in C."""
        if name not in self._maps:
            self._maps[name] = maps.located(self._pointer, name)
        return self._maps[name]

    def program(self, name: str) -> int:
        """The descriptor of one of its programs."""
        return self._fds[name]

    def ring(self, name: str = "events") -> Ring:
        """A reader of one of its ring buffers, closed with the object."""
        ring = Ring(self.map(name))
        self._stack.callback(ring.close)
        return ring

    def lost(self, name: str = "lost") -> int:
        """How many events found no room, or were not seen by a program (``missed``)."""
        counts = self.map(name).per_cpu(struct.pack("=I", 0))
        return sum(int.from_bytes(count, "little") for count in counts) + self.missed()

    def missed(self) -> int:
        """How often the kernel left a program out, since it was running on that CPU already.

        Counted since commit 9ed9e9ba2337 ("bpf: Count the number of times recursion was
        prevented") (v5.12).
        """
        return self.counted().missed

    def cost(self) -> Cost | None:
        """What its programs cost; ``None`` where the kernel does not count it."""
        return self.counted() if self._with_stats else None

    def counted(self) -> Cost:
        """What the kernel has counted of its programs, while somebody had it count."""
        infos = [run_info(fd) for fd in self._fds.values()]
        return Cost(
            run_ns=sum(one[0] for one in infos),
            runs=sum(one[1] for one in infos),
            missed=sum(one[2] for one in infos),
        )

    def opened(self, pointer: int) -> None:
        """Note the descriptors of what was loaded."""
        for name in self.choice.taken:
            program = _program(pointer, name)
            self._fds[name] = libbpf.call("bpf_program__fd", program)

    def attach_all(self, host: Host, perf_hz: int | None) -> None:
        """Attach every program to what its section says."""
        for name, section in self.choice.taken.items():
            kind, _, place = section.partition("/")
            if kind in ("tracepoint", "tp"):
                self._attach_event(host, name, place)
            elif kind == "perf_event" and perf_hz is not None:
                self._attach_clock(host, name, perf_hz)
            elif kind not in ("perf_event", "iter", "syscall") and not chosen_later(section):
                self._hold(libbpf.made("bpf_program__attach", _program(self._pointer, name)))

    def attach_kprobe(self, name: str, function: str, *, on_return: bool = False) -> None:
        """Attach one program to a function of the kernel that is chosen now."""
        program = _program(self._pointer, name)
        self._hold(libbpf.made("bpf_program__attach_kprobe", program, on_return, function.encode()))

    def attach_uprobe(self, name: str, file: str, offset: int, *, pid: int = -1) -> None:
        """Attach one program to a place in a file of machine code, in one process or in all."""
        program = _program(self._pointer, name)
        arguments = (program, False, pid, os.fsencode(file), offset)
        self._hold(libbpf.made("bpf_program__attach_uprobe", *arguments))

    def run(self, name: str, context: bytes = b"") -> int:
        """Run a ``syscall`` program now, with these bytes as its context; what it returns."""
        room = ctypes.create_string_buffer(context, max(len(context), 1))
        place = ctypes.addressof(room) if context else 0
        options = ctypes.create_string_buffer(
            _RUN.pack(_RUN.size, 0, 0, 0, 0, place, 0, len(context), 0, 0, 0, 0, 0, 0, 0)
        )
        libbpf.call("bpf_prog_test_run_opts", self._fds[name], options)
        return int.from_bytes(options.raw[_RUN_RESULT_AT : _RUN_RESULT_AT + 4], "little")

    def read_iterator(self, name: str) -> bytes:
        """Run an iterator program once over all that it iterates; what it wrote."""
        link = libbpf.made("bpf_program__attach_iter", _program(self._pointer, name), None)
        try:
            fd = libbpf.call("bpf_iter_create", libbpf.call("bpf_link__fd", link))
        finally:
            libbpf.call("bpf_link__destroy", link)
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def close(self) -> None:
        """Detach everything and give it back to the kernel."""
        self._stack.close()

    def on_close(self, what: object, *arguments: object) -> None:
        """Call it when the object is closed."""
        assert callable(what)
        self._stack.callback(what, *arguments)

    def _hold(self, link: int) -> None:
        self._stack.callback(libbpf.library().bpf_link__destroy, link)

    def _attach_event(self, host: Host, name: str, place: str) -> None:
        # Not by libbpf, which looks for tracefs where it is mounted: it need not be.
        self._attach_perf(perf.tracepoint(tracefs.event_id(host, place)), name)

    def _attach_clock(self, host: Host, name: str, hz: int) -> None:
        for cpu in perf.online_cpus(host.text("/sys/devices/system/cpu/online")):
            self._attach_perf(perf.cpu_clock(hz, cpu), name)

    def _attach_perf(self, descriptor: int, name: str) -> None:
        self._stack.callback(os.close, descriptor)
        perf.attach(descriptor, self._fds[name])


@contextmanager
def loaded(
    host: Host,
    spec: Spec,
    *,
    sizes: Mapping[str, int] | None = None,
    before: Mapping[str, Iterable[tuple[bytes, bytes]]] | None = None,
    attach: bool = True,
    perf_hz: int | None = None,
    stats: bool = False,
) -> Iterator[Object]:
    """Load an object, fill maps of it ``before`` anything runs, and attach its programs.

    ``sizes`` are the entries of maps, ``perf_hz`` how often a ``perf_event`` program runs, and
    with ``stats`` the kernel counts what the programs cost, which costs a little itself. Raises
    ``Refused`` with the reason.
    """
    reason = ability.why_not(host)
    if reason is not None:
        raise Refused(reason)
    with ExitStack() as stack:
        pointer = _opened(spec)
        stack.callback(libbpf.library().bpf_object__close, pointer)
        choice = _chosen(host, spec, pointer)
        for name, entries in (sizes or {}).items():
            found = libbpf.made("bpf_object__find_map_by_name", pointer, name.encode())
            libbpf.call("bpf_map__set_max_entries", found, entries)
        if stats:
            stats = _counting(stack)
        _load(spec, pointer)
        object = Object(pointer, choice, stats=stats)
        stack.callback(object.close)
        object.opened(pointer)
        for name, pairs in (before or {}).items():
            for key, value in pairs:
                object.map(name).set(key, value)
        if attach:
            _attach(spec, object, host, perf_hz)
        yield object


def choice(host: Host, spec: Spec) -> Choice:
    """Which programs this kernel would take, without loading one; raises ``Refused``."""
    reason = ability.why_not(host)
    if reason is not None:
        raise Refused(reason)
    pointer = _opened(spec)
    try:
        return _chosen(host, spec, pointer)
    finally:
        libbpf.library().bpf_object__close(pointer)


def chosen_later(section: str) -> bool:
    """Whether the place of a probe is chosen by whoever asks (``Object.attach_kprobe``)."""
    return section in ("kprobe", "kretprobe", "uprobe", "uretprobe")


def _opened(spec: Spec) -> int:
    try:
        with open(spec.file, "rb") as file:
            raw = file.read()
    except OSError:
        raise Refused(f"the BPF object {spec.name} was not built: python hatch_build.py") from None
    with libbpf.listening() as said:
        try:
            return libbpf.made("bpf_object__open_mem", raw, len(raw), None)
        except OSError as error:
            raise Refused(f"{spec.name}: {error.strerror}", "".join(said)) from None


def _chosen(host: Host, spec: Spec, pointer: int) -> Choice:
    sections = dict(_sections(pointer))
    taken: dict[str, str] = {}
    left: dict[str, str] = {}
    for group in (*spec.programs, *((name,) for name in spec.optional)):
        lacks = {name: ability.missing(host, sections[name]) for name in group}
        found = next((name for name in group if lacks[name] is None), None)
        left |= {name: lack for name, lack in lacks.items() if lack is not None}
        if found is not None:
            taken[found] = sections[found]
        elif group[0] not in spec.optional:
            reasons = " and ".join(dict.fromkeys(str(lack) for lack in lacks.values()))
            raise Refused(f"this kernel has {reasons}")
    for name in sections:
        libbpf.call("bpf_program__set_autoload", _program(pointer, name), name in taken)
    return Choice(taken=taken, left=left)


def _sections(pointer: int) -> Iterator[tuple[str, str]]:
    library = libbpf.library()
    program = library.bpf_object__next_program(pointer, None)
    while program:
        name = library.bpf_program__name(program).decode()
        yield name, library.bpf_program__section_name(program).decode()
        program = library.bpf_object__next_program(pointer, program)


def _program(pointer: int, name: str) -> int:
    return libbpf.made("bpf_object__find_program_by_name", pointer, name.encode())


def _load(spec: Spec, pointer: int) -> None:
    with libbpf.listening() as said:
        try:
            libbpf.call("bpf_object__load", pointer)
        except OSError as error:
            log = "".join(said)
            raise Refused(f"the kernel refused {spec.name}: {_why(error, log)}", log) from None


def _why(error: OSError, log: str) -> str:
    """The line of the verifier's log that tells what was wrong, with the errno's words."""
    told = [line.strip() for line in log.partition("processed ")[0].splitlines()]
    last = next((line for line in reversed(told) if line), "")
    why = ability.explained(error)
    return f"{why}: {last}" if last else why


def _attach(spec: Spec, object: Object, host: Host, perf_hz: int | None) -> None:
    with libbpf.listening() as said:
        try:
            object.attach_all(host, perf_hz)
        except OSError as error:
            reason = f"{spec.name} could not be attached: {ability.explained(error)}"
            raise Refused(reason, "".join(said)) from None


def _counting(stack: ExitStack) -> bool:
    """Have the kernel count what programs cost, for as long as the descriptor is open."""
    try:
        # Since commit d46edd671a14 ("bpf: Sharing bpf runtime stats with BPF_ENABLE_STATS")
        # (v5.8).
        stack.callback(partial(os.close, libbpf.call("bpf_enable_stats", _STATS_RUN_TIME)))
    except OSError:
        return False
    return True


def run_info(fd: int) -> tuple[int, int, int]:
    """Of one program: ns and runs while the kernel timed it, and how often it was left out."""
    info = ctypes.create_string_buffer(_INFO_SIZE)
    size = ctypes.c_uint32(_INFO_SIZE)
    libbpf.call("bpf_obj_get_info_by_fd", fd, info, ctypes.byref(size))
    run_ns, runs, missed = struct.unpack_from("=QQQ", info.raw, _RUN_TIME_AT)
    return run_ns, runs, missed
