"""One connection attempt from another network namespace, which a person asked for.

No byte of data is sent, and what was opened is closed at once.
"""

import errno
import select
import socket
import time

from whybox.kernel.flow import Attempt, Endpoint
from whybox.kernel.netns import call_in

TCP_INFO = 11
#: In ``struct tcp_info`` (include/uapi/linux/tcp.h).
RETRANSMITS_AT = 2


class Knock:
    """Begun at once; it goes on in the kernel until ``outcome`` is asked for."""

    def __init__(self, path: str, to: Endpoint) -> None:
        self._began_ns = time.monotonic_ns()
        self._errno: int | None = None
        self._socket = call_in(path, lambda: self._begin(to))

    def _begin(self, to: Endpoint) -> socket.socket:
        """Runs in the namespace: the socket stays there."""
        family = socket.AF_INET6 if ":" in to.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        number = sock.connect_ex((to.address, to.port))
        self._errno = None if number in (0, errno.EINPROGRESS) else number
        return sock

    def close(self) -> None:
        """Give it up."""
        self._socket.close()

    def outcome(self) -> Attempt:
        """What has become of it."""
        waited = time.monotonic_ns() - self._began_ns
        try:
            if self._errno is not None:
                return Attempt(errno=self._errno, waited_ns=waited)
            _, ready, _ = select.select([], [self._socket], [], 0)
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return Attempt(
                errno=number or None,
                connected=bool(ready) and number == 0,
                resent=None if ready else self._resent(),
                waited_ns=waited,
            )
        finally:
            self.close()

    def _resent(self) -> int | None:
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 104)
        except OSError:
            return None
        return info[RETRANSMITS_AT] if len(info) > RETRANSMITS_AT else None
