"""A nameserver on the node of a box: a socket in the node's namespace, served by a thread here."""

import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeAlias

from whybox.kernel import dns, task
from whybox.kernel.dns import Message
from whybox.kernel.host import Host
from whybox.kernel.netns import call_in
from whybox.lab.box import Box
from whybox.lab.network import Wires

#: What is said to a question: a code, the records there are (of type A), and after how long.
Said: TypeAlias = tuple[int, int, float]
Zone: TypeAlias = Callable[[Message], Said | None]

_HEAD = struct.Struct("!HHHHHH")
#: A pointer to the name in the question, type A, class IN, a minute, four bytes.
_RECORD = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("192.0.2.7")


def serve(box: Box, address: str, zone: Zone) -> None:
    """Answer at this address of the node until the box is closed; ``None``: not at all."""
    box.closing.callback(serving(call_in(_node(box), lambda: bound(address)), zone))


def serving(sock: socket.socket, zone: Zone) -> Callable[[], None]:
    """Answer what comes to a bound socket, until the function that comes back is called."""
    thread = threading.Thread(target=_answer, args=(sock, zone), daemon=True)
    thread.start()

    def end() -> None:
        sock.close()
        thread.join(5)

    return end


def add_address(box: Box, address: str) -> None:
    """One more address of the node, on the bridge of the box."""
    wired = box.wired
    assert wired is not None

    def add() -> None:
        with Wires() as wires:
            wires.add_address(wired.bridge, f"{address}/{wired.prefix}")

    call_in(_node(box), add)


def _node(box: Box) -> str:
    return f"/proc/{task.stat(Host(), box.pid).ppid}/ns/net"


def bound(address: str) -> socket.socket:
    """A socket at the nameservers' port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, dns.PORT))
    sock.settimeout(0.2)
    return sock


def _answer(sock: socket.socket, zone: Zone) -> None:
    while True:
        try:
            data, client = sock.recvfrom(4096)
        except TimeoutError:
            continue
        except OSError:
            return  # it was closed
        asked = dns.message(data)
        said = None if asked is None else zone(asked)
        if said is None:
            continue
        code, records, after = said
        answer = _built(data, code, records)
        if after:
            timer = threading.Timer(after, _send, (sock, answer, client))
            timer.daemon = True
            timer.start()
        else:
            _send(sock, answer, client)


def _built(data: bytes, code: int, records: int) -> bytes:
    """The question again, as far as it goes, and the records."""
    id, flags, *_ = _HEAD.unpack_from(data)
    end = data.index(b"\0", _HEAD.size) + 5
    head = _HEAD.pack(id, 0x8080 | flags & 0x0100 | code, 1, records, 0, 0)
    return head + data[_HEAD.size : end] + _RECORD * records


def _send(sock: socket.socket, answer: bytes, client: tuple[str, int]) -> None:
    try:
        sock.sendto(answer, client)
    except OSError:
        return  # closed, or the client is gone
