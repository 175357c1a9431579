"""Looking into another network namespace without going there: a short-lived thread goes instead.

``setns(2)`` moves one thread, and a socket stays in the namespace it was made in
(network_namespaces(7)). So the caller's own namespace never changes, not even for a moment. An IPC
namespace is looked into in the same way.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from whybox.kernel import netlink

CLONE_NEWNET = 0x40000000
CLONE_NEWIPC = 0x08000000
_FLAGS = {"net": CLONE_NEWNET, "ipc": CLONE_NEWIPC}
TIMEOUT_SEC = 2.0

_T = TypeVar("_T")

_libc = ctypes.CDLL(None, use_errno=True)


def call_in(
    ns_path: str,
    function: Callable[[], _T],
    timeout_sec: float = TIMEOUT_SEC,
    *,
    kind: str = "net",
) -> _T:
    """What ``function`` returns or raises in the network (or IPC) namespace ``ns_path`` names.

    There the namespace's files are at /proc/thread-self/net and /proc/sys/net; /proc/net and
    /proc/self/net belong to the main thread. After ``timeout_sec`` TimeoutError is raised, and a
    daemon thread is left behind until the function comes back.
    """
    if _is_own(ns_path, kind):
        return function()
    errand = _Errand(ns_path, function, kind)
    thread = threading.Thread(target=errand.run, name=f"{kind}ns {ns_path}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # A container at its limit of tasks cannot be looked at by one more of them.
        raise OSError(errno.EAGAIN, "no thread could be started to look there", ns_path) from None
    thread.join(timeout_sec)
    if thread.is_alive():
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout_sec} s", ns_path)
    return errand.outcome()


def _is_own(ns_path: str, kind: str) -> bool:
    """Whether the caller is there already: then nobody needs to go."""
    try:
        return os.path.samestat(os.stat(ns_path), os.stat(f"/proc/thread-self/ns/{kind}"))
    except OSError:
        return False  # whoever goes there will say why


def netlink_socket(ns_path: str, protocol: int = netlink.NETLINK_ROUTE) -> netlink.Socket:
    """A netlink socket inside the namespace, for any thread to use; it keeps the namespace."""
    return call_in(ns_path, lambda: netlink.Socket(protocol))


class _Errand(Generic[_T]):
    """One function's way through a thread: its exception, whatever it is, goes to the caller."""

    def __init__(self, ns_path: str, function: Callable[[], _T], kind: str) -> None:
        self._ns_path, self._kind = ns_path, kind
        self._function = function
        self._results: list[_T] = []
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._error = error
        return True

    def run(self) -> None:
        with self:
            _enter(self._ns_path, self._kind)
            self._results.append(self._function())

    def outcome(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._results.pop()


def _enter(ns_path: str, kind: str) -> None:
    """Move the running thread. To its own namespace it need not move, and needs no privilege."""
    # O_NONBLOCK: a path that turns out to be a FIFO must not wait for its writer.
    descriptor = os.open(ns_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat(f"/proc/thread-self/ns/{kind}")):
            return
        if _libc.setns(descriptor, _FLAGS[kind]) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), ns_path)
    finally:
        os.close(descriptor)
