r"""One HTTP GET over a unix socket: all that is asked of an engine, and nothing it can hang.

``http.client`` imports for longer than an engine takes to answer. HTTP/1.0 needs no chunks and no
kept connection; a server that sends chunks all the same is understood.

>>> parse(b"HTTP/1.1 404 Not Found\r\nA: b\r\n\r\nno such container").status
404
"""

import errno
import time
from collections.abc import Mapping

from msgspec import Struct

#: No answer that we ask for is larger: a list of 8000 containers fits.
BODY_LIMIT_BYTES = 16 << 20
_HEAD_LIMIT_BYTES = 64 << 10
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Answer(Struct, frozen=True, kw_only=True):
    """What the server said."""

    status: int
    body: bytes


def get(path: str, resource: str, *, seconds: float = 1.0) -> Answer:
    """The answer to ``GET resource`` from the server that listens at ``path``.

    Raises OSError, whose ``strerror`` says in words what ``path`` did, after ``seconds`` at most.
    """
    deadline = time.monotonic() + seconds
    try:
        return parse(_received(path, resource, deadline))
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"did not answer within {seconds:g} s", path) from None
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"has no socket at {path}", path) from None
    except PermissionError:
        raise PermissionError(errno.EACCES, "may not be asked: permission denied", path) from None
    except ConnectionRefusedError:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "is not running", path) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from None


def encoded(text: str) -> str:
    """Text as part of a query.

    >>> encoded('{"a b"}')
    '%7B%22a%20b%22%7D'
    """
    return "".join(
        c if c in _UNRESERVED else "".join(f"%{b:02X}" for b in c.encode()) for c in text
    )


def _received(path: str, resource: str, deadline: float) -> bytes:
    from socket import AF_UNIX, SOCK_STREAM, socket  # a full id needs no engine, and no socket

    with socket(AF_UNIX, SOCK_STREAM) as server:
        server.settimeout(_left(deadline))
        server.connect(path)
        server.sendall(f"GET {resource} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = bytearray()
        while not _complete(answer):
            server.settimeout(_left(deadline))
            part = server.recv(1 << 16)
            if not part:
                break
            answer += part
        return bytes(answer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _complete(answer: bytearray) -> bool:
    """Whether a length was announced and reached; otherwise the server says so by closing."""
    end = answer.find(b"\r\n\r\n", 0, _HEAD_LIMIT_BYTES)
    size = len(answer) - (end + 4 if end >= 0 else 0)
    if size > (BODY_LIMIT_BYTES if end >= 0 else _HEAD_LIMIT_BYTES):
        raise OSError(errno.EFBIG, "answered more than anybody can want to know")
    if end < 0:
        return False
    length = _length(_headers(bytes(answer[:end])))
    return length is not None and size >= length


def parse(answer: bytes) -> Answer:
    """A whole answer; raises OSError when it was cut off or is not HTTP."""
    head, end, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not words[0].startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        raise _garbled("closed the connection without an answer" if not answer else "spoke no HTTP")
    if not end:
        raise _garbled("was cut off in the middle of its answer")
    headers = _headers(head)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _dechunked(body)
    length = _length(headers)
    if length is not None and len(body) < length:
        raise _garbled("was cut off in the middle of its answer")
    return Answer(status=int(words[1][:9]), body=body if length is None else body[:length])


def _headers(head: bytes) -> Mapping[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    named = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in named}


def _length(headers: Mapping[str, str]) -> int | None:
    said = headers.get("content-length")
    if said is None or "transfer-encoding" in headers:
        return None  # RFC 9112, 6.3: the encoding overrides the length
    if not (said.isascii() and said.isdigit() and len(said) < 16):
        raise _garbled("spoke no HTTP")
    return int(said)


def _dechunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    while True:
        line, end, body = body.partition(b"\r\n")
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError:
            size = -1
        if not end or size < 0 or len(body) < size:
            raise _garbled("was cut off in the middle of its answer")
        if size == 0:
            return b"".join(parts)
        parts.append(body[:size])
        body = body[size:].removeprefix(b"\r\n")


def _garbled(words: str) -> OSError:
    return OSError(errno.EBADMSG, words)
