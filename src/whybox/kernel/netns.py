"""Looking into another network namespace without going there: a short-lived thread goes instead.

``setns(2)`` moves one thread, and a socket stays in the namespace it was made in
(network_namespaces(7)). So the caller's own namespace never changes, not even for a moment.
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
TIMEOUT_SEC = 2.0

_T = TypeVar("_T")

_libc = ctypes.CDLL(None, use_errno=True)


def call_in(ns_path: str, function: Callable[[], _T], timeout_sec: float = TIMEOUT_SEC) -> _T:
    """What ``function`` returns or raises in the network namespace that ``ns_path`` names.

    There the namespace's files are at /proc/thread-self/net and /proc/sys/net; /proc/net and
    /proc/self/net belong to the main thread. After ``timeout_sec`` TimeoutError is raised, and a
    daemon thread is left behind until the function comes back.
    """
    errand = _Errand(ns_path, function)
    thread = threading.Thread(target=errand.run, name=f"netns {ns_path}", daemon=True)
    thread.start()
    thread.join(timeout_sec)
    if thread.is_alive():
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout_sec} s", ns_path)
    return errand.outcome()


def netlink_socket(ns_path: str, protocol: int = netlink.NETLINK_ROUTE) -> netlink.Socket:
    """A netlink socket inside the namespace, for any thread to use; it keeps the namespace."""
    return call_in(ns_path, lambda: netlink.Socket(protocol))


class _Errand(Generic[_T]):
    """One function's way through a thread: its exception, whatever it is, goes to the caller."""

    def __init__(self, ns_path: str, function: Callable[[], _T]) -> None:
        self._ns_path = ns_path
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
            _enter(self._ns_path)
            self._results.append(self._function())

    def outcome(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._results.pop()


def _enter(ns_path: str) -> None:
    """Move the running thread. To its own namespace it need not move, and needs no privilege."""
    # O_NONBLOCK: a path that turns out to be a FIFO must not wait for its writer.
    descriptor = os.open(ns_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if os.path.samestat(os.fstat(descriptor), os.stat("/proc/thread-self/ns/net")):
            return
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), ns_path)
    finally:
        os.close(descriptor)
