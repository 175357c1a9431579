"""The kernel's tracer ``function_graph``: what a function calls, for some tasks (trace/ftrace.rst).

On newer kernels it runs in an instance of its own, on older ones the whole machine has one
(measured: 6.12 and 7.3 list it in an instance's ``available_tracers``, 5.10 and 6.1 do not). Which
function, and how deep, is one setting for all either way. So whoever else traces function graphs
is left alone, and what was changed is set back on every way out. That we changed something is told
by the name of an instance, ``whybox-graph-PID-START`` or ``whybox-top-PID-START``, whose own
settings keep what was set before. Should whybox be killed, the next one that makes an instance sees
that name and sets everything back (``tracefs.remove_stale``).
"""

import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from whybox.kernel import tracefs, tracepages
from whybox.kernel.graphsteps import TSC, Formats, Graph
from whybox.kernel.host import Host

TRACER = "function_graph"

#: What ``set_graph_function`` says when nobody has set it; read, it is a comment.
_UNSET = "#"

#: The buffers of an instance, together and for one CPU.
_BUFFERS_KIB, _MOST_KIB_PER_CPU, _LEAST_KIB_PER_CPU = 64 << 10, 2048, 256

#: A setting is read to here, and a list of all functions, which is some 2 MB, to there.
_MOST_TEXT, _MOST_LIST = 1 << 16, 16 << 20


@contextmanager
def graph(host: Host, function: str, depth: int, pids: Callable[[], set[int]]) -> Iterator[Graph]:
    """Trace what ``function`` calls, so many levels deep, in the threads that ``pids`` finds.

    Raises OSError with a sentence where this kernel cannot, or somebody else traces.
    """
    with tracefs.directory(host) as root:
        tracefs.remove_stale(host, f"{root}/instances")
        kind = _kind(host, root)
        _nobody_else(root, kind)
        name = tracefs.own_name(host, kind)
        note = tracefs.made(f"{root}/instances/{name}")
        tracing = Graph(
            note if kind == "graph-" else root,
            _clock(root),
            _formats(root),
            in_instance=kind == "graph-",
        )
        try:
            _begin(root, note, tracing, function, depth, pids)
            yield tracing
        finally:
            with _undisturbed():
                tracing.close()
                restore(f"{root}/instances", os.path.basename(note))


def stop(tracing: Graph) -> None:
    """Record no more; what was recorded can be read."""
    with suppress(OSError):
        tracefs.write(f"{tracing.own}/tracing_on", "0")


def restore(instances: str, name: str) -> None:
    """Set back what a trace has changed, and remove its note; raises OSError if that is left."""
    root, note = os.path.dirname(instances), f"{instances}/{name}"
    steps: list[Callable[[], None]] = [lambda: tracefs.write(f"{note}/current_tracer", "nop")]
    if name.startswith("whybox-top-"):
        steps += [
            lambda: _stop_top(root),
            lambda: _clear(f"{root}/set_ftrace_pid"),
            *(_copying(note, root, file) for file in ("options/function-fork", "trace_clock")),
        ]
    steps += [
        lambda: _clear(f"{root}/set_graph_function"),
        lambda: tracefs.write(f"{root}/max_graph_depth", "0"),
    ]
    if name.startswith("whybox-top-"):
        steps.append(_copying(note, root, "tracing_on"))
    for step in steps:
        with suppress(OSError):  # as much as can be set back is set back
            step()
    os.rmdir(note)


def why_not(host: Host) -> str | None:
    """Why function graphs cannot be traced here, or ``None``; beginning is the full test."""
    try:
        with tracefs.directory(host) as root:
            _kind(host, root)
    except OSError as error:
        return str(error.strerror)
    return None


def traceable(host: Host) -> tuple[str, ...]:
    """The functions that the function tracer knows; empty where the kernel has none."""
    try:
        with tracefs.directory(host) as root:
            lines = _text(f"{root}/available_filter_functions", _MOST_LIST).splitlines()
    except OSError:
        return ()
    return tuple(dict.fromkeys(line.split(maxsplit=1)[0] for line in lines if line))


def tracepoints(host: Host) -> tuple[str, ...]:
    """All tracepoints, as ``vmscan/mm_vmscan_direct_reclaim_begin``."""
    with tracefs.directory(host) as root:
        text = _text(f"{root}/available_events", _MOST_LIST)
    return tuple(line.strip().replace(":", "/", 1) for line in text.splitlines() if line.strip())


#: What the kernel takes its time from, and what it falls back to from an untrusted TSC.
_CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_COARSE = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")


def _begin(
    root: str,
    note: str,
    tracing: Graph,
    function: str,
    depth: int,
    pids: Callable[[], set[int]],
) -> None:
    own = tracing.own
    if own == root:
        for file in ("options/function-fork", "trace_clock", "tracing_on"):
            _copying(root, note, file)()
    else:
        cpus = sum(n.startswith("cpu") for n in os.listdir(f"{own}/per_cpu"))
        kib = min(max(_BUFFERS_KIB // max(cpus, 1), _LEAST_KIB_PER_CPU), _MOST_KIB_PER_CPU)
        tracefs.write(f"{own}/buffer_size_kb", str(kib))
    tracefs.write(f"{own}/trace_clock", tracing.clock)
    tracefs.write(f"{own}/tracing_on", "1")
    tracefs.write(f"{own}/options/function-fork", "1")
    _watch_all(tracing, pids)
    _choose(root, function)
    tracefs.write(f"{root}/max_graph_depth", str(depth))
    tracing.calibrate()
    _switch_on(own)
    tracing.open()


def _clock(root: str) -> str:
    """The finest that is safe.

    ``global`` never goes back from one CPU to the next (Documentation/trace/ftrace.rst): by
    ``x86-tsc`` calls of a task that changed its CPU came out of order where the counters of a
    virtual machine are not in step (seen on 5.10 and 6.1). It stands still for a whole tick where
    the kernel does not trust the counter, and there that must do. Not ``mono``: while the graph
    tracer took its times from there, guests in QEMU stood still (seen on 5.10 and 6.1 with hpet for
    its source, on 6.1 with tsc; why is not known).
    """
    clocks = _text(f"{root}/trace_clock").replace("[", " ").replace("]", " ").split()
    trusted = _text(_CLOCKSOURCE).strip() not in _COARSE
    order = ("global", TSC, "local") if trusted else (TSC, "global", "local")
    return next((clock for clock in order if clock in clocks), clocks[0])


def _watch_all(tracing: Graph, pids: Callable[[], set[int]]) -> None:
    """Those who were forked while we looked are found by looking again."""
    found = pids()
    if not found:
        raise OSError(errno.ESRCH, "it has no task that could be traced")
    for _ in range(3):
        tracing.watch(found)
        found = pids()


def _choose(root: str, function: str) -> None:
    try:
        tracefs.write(f"{root}/set_graph_function", function)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(errno.EINVAL, f"the function tracer knows no {function}") from None


def _switch_on(own: str) -> None:
    """The list of tracers tells what is built in, not what may be used: do it, and look."""
    try:
        tracefs.write(f"{own}/current_tracer", TRACER)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise OSError(error.errno, "somebody reads the kernel's trace_pipe now") from None
        raise OSError(error.errno, f"this kernel refuses {TRACER}: {error.strerror}") from None
    if _text(f"{own}/current_tracer").strip() != TRACER:
        raise OSError(errno.EINVAL, f"this kernel lists {TRACER} and does not switch it on")


def _kind(host: Host, root: str) -> str:
    """``graph-``: in an instance; ``top-``: the machine's own, since an instance has none."""
    if TRACER not in _text(f"{root}/available_tracers").split():
        raise OSError(
            errno.ENODEV,
            "this kernel has no tracer of function graphs (CONFIG_FUNCTION_GRAPH_TRACER)",
        )
    probe = tracefs.made(f"{root}/instances/{tracefs.own_name(host)}")
    try:
        listed = _text(f"{probe}/available_tracers").split()
    finally:
        os.rmdir(probe)
    return "graph-" if TRACER in listed else "top-"


def _nobody_else(root: str, kind: str) -> None:
    """Raises OSError where somebody has set what we would have to change."""
    functions = _text(f"{root}/set_graph_function")
    depth = _text(f"{root}/max_graph_depth").strip()
    if not functions.startswith(_UNSET) or depth != "0":
        _busy("set_graph_function or max_graph_depth is set")
    for name in os.listdir(f"{root}/instances"):
        with suppress(FileNotFoundError):
            if _text(f"{root}/instances/{name}/current_tracer").strip() == TRACER:
                _busy(f"the instance {name} traces function graphs")
    tracer = _text(f"{root}/current_tracer").strip()
    if kind == "graph-":
        if tracer == TRACER:
            _busy(f"current_tracer is {tracer}")
        return
    if tracer != "nop":
        _busy(f"current_tracer is {tracer}")
    if not _text(f"{root}/set_ftrace_pid").startswith("no pid"):
        _busy("set_ftrace_pid is set")
    if _text(f"{root}/set_event").strip():
        _busy("tracepoints are switched on (set_event)")
    if any(_entries(root)):
        _busy("its buffer holds a recording; if nobody needs it: echo > /sys/kernel/tracing/trace")


def _busy(why: str) -> None:
    raise OSError(
        errno.EBUSY,
        f"the kernel's function tracer can be used by one only, and is in use: {why}",
    )


def _entries(root: str) -> Iterator[int]:
    for cpu in os.listdir(f"{root}/per_cpu"):
        found = re.search(r"^entries: (\d+)$", _text(f"{root}/per_cpu/{cpu}/stats"), re.MULTILINE)
        yield 0 if found is None else int(found[1])


def _formats(root: str) -> Formats:
    enter, leave, mark = (
        tracepages.format(_text(f"{root}/events/ftrace/{name}/format"))
        for name in ("funcgraph_entry", "funcgraph_exit", "print")
    )
    return Formats(enter=enter, leave=leave, mark=mark)


def _stop_top(root: str) -> None:
    if _text(f"{root}/current_tracer").strip() == TRACER:
        tracefs.write(f"{root}/current_tracer", "nop")


def _copying(source: str, target: str, file: str) -> Callable[[], None]:
    def copy() -> None:
        value = _text(f"{source}/{file}").strip()
        chosen = re.search(r"\[(\S+)\]", value)  # of a list, the one in brackets
        tracefs.write(f"{target}/{file}", value if chosen is None else chosen[1])

    return copy


def _clear(path: str) -> None:
    """Opening it so is what clears it; writing nothing would not."""
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC))


def _text(path: str, most: int = _MOST_TEXT) -> str:
    with open(path, "rb") as file:
        return file.read(most).decode("ascii", "replace")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever presses Ctrl-C again waits until everything is set back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
