"""The smallest programs that behave in one known way. A lab puts one into a box:

    box.start(workload.zombies(17))

Each function here returns a program. Unless signals are what it is about, PID 1 ends at once on
SIGTERM, ends its children first, and reaps them: a program shall make one trouble and no other.
"""

import mmap
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from whybox.kernel.libc import signalfd
from whybox.lab.process import Program

_PAGE = mmap.PAGESIZE
_STEP = 1 << 20


def idle() -> Program:
    """Does nothing, and ends at once when told to."""
    return _named("idle", _wait_for_term)


def handling() -> Program:
    """A PID 1 as it should be: SIGTERM has a handler, which exits 0."""
    return _named("handling", _wait_for_term)


def deaf() -> Program:
    """No handlers at all: as PID 1 it hears nothing but a SIGKILL from outside."""
    return _named("deaf", _sleep)


def ignoring() -> Program:
    """SIGTERM is ignored (SIG_IGN)."""

    def program() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _sleep()

    return program


def blocking_term() -> Program:
    """SIGTERM is blocked and nobody asks for it: it stays pending."""

    def program() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        _sleep()

    return program


def sigwaiting() -> Program:
    """No handler and yet healthy: it waits for signals, as tini does."""

    def program() -> None:
        signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        while signal.sigwait(signals) == signal.SIGCHLD:
            _reap_all()

    return program


def signalfd_loop() -> Program:
    """The masks of ``blocking_term`` and yet healthy: it reads SIGTERM from a descriptor."""

    def program() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        descriptor = signalfd({signal.SIGTERM})
        poll = select.epoll()
        poll.register(descriptor, select.EPOLLIN)
        while not poll.poll():
            pass
        os.read(descriptor, 128)

    return program


def burn(threads: int = 1) -> Program:
    """Uses as much CPU as it gets, in this many tasks at once."""

    def program() -> None:
        # Processes, since threads of Python would take turns.
        _parent_of([_child(_spin) for _ in range(threads)])

    return program


def bursts(tasks: int, cpu_ms: int, every_ms: int) -> Program:
    """All tasks burn ``cpu_ms`` of CPU at once, every ``every_ms``, as a server under requests."""

    def burst() -> None:
        period = every_ms / 1000
        while True:
            # All look at one clock, so they start together without being told.
            time.sleep(period - time.monotonic() % period)
            until = time.process_time() + cpu_ms / 1000
            while time.process_time() < until:
                pass

    def program() -> None:
        _parent_of([_child(burst) for _ in range(tasks)])

    return program


def zombies(n: int) -> Program:
    """Its ``n`` children have ended, and it never waits for them."""

    def program() -> None:
        _end_on_term()
        for _ in range(n):
            _child(lambda: None)
        _sleep()

    return program


def orphans(n: int) -> Program:
    """``n`` grandchildren lose their parent and then end: PID 1 inherits them and never waits."""

    def child() -> None:
        _child(lambda: time.sleep(0.2))

    def program() -> None:
        _end_on_term()
        for _ in range(n):
            os.waitpid(_child(child), 0)
        _sleep()

    return program


def reaping(n: int) -> Program:
    """``n`` children end, and it waits for every one of them."""

    def program() -> None:
        _parent_of([_child(lambda: None) for _ in range(n)])

    return program


def forking(n: int, every_s: float = 0.0) -> Program:
    """Asks ``n`` times for one more idle child, refused or not, and keeps those it gets."""

    def program() -> None:
        children: list[int] = []
        _end_on_term(children)
        for _ in range(n):
            with suppress(BlockingIOError), _term_held_back():
                children.append(_child(_sleep))
            time.sleep(every_s)
        _parent_of(children)

    return program


def threads_idle(n: int) -> Program:
    """``n`` threads that sleep."""

    def program() -> None:
        for _ in range(n):
            threading.Thread(target=_sleep, daemon=True).start()
        _wait_for_term()

    return program


def allocate(bytes: int, hold: bool = True) -> Program:
    """Touches that much memory, bit by bit, in PID 1 itself; then holds it, or ends."""

    def program() -> None:
        _end_on_term()
        memory = _touched(bytes)
        while hold and memory:
            signal.pause()

    return program


def append_once(path: str, after_s: float) -> Program:
    """After a while it appends one byte to a file."""

    def program() -> None:
        _end_on_term()
        time.sleep(after_s)
        with open(path, "ab") as file:
            file.write(b"x")
        _wait_for_term()

    return program


def listen(address: str = "0.0.0.0", port: int = 8080, backlog: int = 128) -> Program:
    """Listens and never accepts."""

    def program() -> None:
        with socket.create_server((address, port), backlog=backlog):
            _wait_for_term()

    return program


def serve(address: str = "0.0.0.0", port: int = 8080) -> Program:
    """Accepts every connection and answers one line."""

    def program() -> None:
        _end_on_term()
        with socket.create_server((address, port)) as server:
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"ok\n")

    return program


def send_repeatedly(signum: int, every_s: float) -> Program:
    """Sends PID 1 of its box a signal again and again: for ``Box.run``."""

    def program() -> None:
        while True:
            os.kill(1, signum)
            time.sleep(every_s)

    return program


def _named(name: str, program: Program) -> Program:
    """The same program under another name, which becomes its ``comm``."""

    def again() -> None:
        program()

    again.__qualname__ = name
    return again


def _sleep() -> None:
    while True:
        time.sleep(100)


def _spin() -> None:
    while True:
        pass


def _child(body: Callable[[], object]) -> int:
    """A child with no handlers that runs ``body``; its parent learns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for signum in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        body()
    finally:
        os._exit(0)


@contextmanager
def _term_held_back() -> Iterator[None]:
    """While a child is born that is not yet in the list of those to be told."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_on_term(children: Sequence[int] = ()) -> None:
    """On SIGTERM tell the children, wait for them, and end."""

    def stop(*_: object) -> None:
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        while children and _reap(os.WEXITED):
            pass
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)


def _wait_for_term() -> None:
    _parent_of([])


def end_on_term() -> None:
    """For a PID 1 that has no children: SIGTERM ends it."""
    _end_on_term()


def together(*bodies: Callable[[], object]) -> Program:
    """All of them at once, each in a child of its own."""

    def program() -> None:
        _parent_of([_child(body) for body in bodies])

    return program


def _parent_of(children: Sequence[int]) -> None:
    """Reap what ends; end on SIGTERM as ``_end_on_term`` does."""
    _end_on_term(children)
    signal.signal(signal.SIGCHLD, _reap_all)
    _reap_all()
    while True:
        # A signal that comes just before the call is seen after it: it must not last for ever.
        time.sleep(0.5)


def _reap(options: int = os.WNOHANG | os.WEXITED) -> bool:
    """Reap one child that has ended; whether there was one."""
    try:
        return os.waitid(os.P_ALL, 0, options) is not None
    except ChildProcessError:
        return False


def _reap_all(*_: object) -> None:
    while _reap():
        pass


def _touched(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, _STEP):
        for page in range(start, min(start + _STEP, size), _PAGE):
            memory[page] = 1
    return memory
