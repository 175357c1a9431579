"""HTTP over a unix socket: what is understood, what is refused, and when it gives up."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pure.runtimes_tree import answer, server
from whybox.runtimes import unixhttp
from whybox.runtimes.timestamp import nanoseconds

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"


def test_a_body_ends_where_the_connection_does() -> None:
    said = unixhttp.parse(answer('{"a": 1}'))
    assert (said.status, said.body) == (200, b'{"a": 1}')


def test_a_body_ends_where_its_length_does() -> None:
    assert unixhttp.parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabcd").body == b"ab"


def test_chunks_are_joined() -> None:
    body = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"
    assert unixhttp.parse(CHUNKED + body).body == b"abc0123456789"


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        CHUNKED + b"3\r\nab",
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"x\r\nabc\r\n0\r\n",
        CHUNKED + b"-1\r\nabc\r\n0\r\n",
    ],
)
def test_an_answer_that_was_cut_off_is_refused(cut: bytes) -> None:
    with pytest.raises(OSError, match="cut off"):
        unixhttp.parse(cut)


@pytest.mark.parametrize(
    "other", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n"]
)
def test_what_is_not_http_is_refused(other: bytes) -> None:
    with pytest.raises(OSError, match="spoke no HTTP"):
        unixhttp.parse(other)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(raw: bytes) -> None:
    for head in (b"", b"HTTP/1.1 200 OK\r\n", CHUNKED):
        with contextlib.suppress(OSError):
            assert len(unixhttp.parse(head + raw).body) <= len(raw)


def test_a_server_is_asked_and_answers(tmp_path: Path) -> None:
    with server(tmp_path / "s", lambda resource: answer(resource)) as asked:
        assert unixhttp.get(str(tmp_path / "s"), "/a?b=c").body == b"/a?b=c"
    assert asked == ["/a?b=c"]


def test_a_server_that_hangs_is_left_within_the_deadline(tmp_path: Path) -> None:
    with server(tmp_path / "s", lambda _: None):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.2 s"):
            unixhttp.get(str(tmp_path / "s"), "/", seconds=0.2)
        assert 0.15 < time.monotonic() - began < 2


def test_a_server_that_drips_has_one_deadline_for_all(tmp_path: Path) -> None:
    """Each byte comes in time; the answer does not."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        tap = threading.Thread(target=_drip, args=(listener,))
        tap.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            unixhttp.get(str(tmp_path / "s"), "/", seconds=0.3)
        assert time.monotonic() - began < 2
        tap.join()


def _drip(listener: socket.socket) -> None:
    client, _ = listener.accept()
    with client, contextlib.suppress(BrokenPipeError):
        for _ in range(100):
            client.sendall(b"H")
            time.sleep(0.05)


def test_a_stopped_server_whose_queue_takes_the_connection_is_left(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(TimeoutError):
            unixhttp.get(str(tmp_path / "s"), "/", seconds=0.1)


def test_an_endless_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unixhttp, "BODY_LIMIT_BYTES", 1000)
    with (
        server(tmp_path / "s", lambda _: answer("x" * 1001)),
        pytest.raises(OSError, match="more than"),
    ):
        unixhttp.get(str(tmp_path / "s"), "/")


def test_no_socket_and_nobody_behind_it_are_two_sentences(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no socket at"):
        unixhttp.get(str(tmp_path / "s"), "/")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    with pytest.raises(ConnectionRefusedError, match="is not running"):
        unixhttp.get(str(tmp_path / "s"), "/")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-02T03:04:05.123456789Z", 1704164645123456789),
        ("2024-01-02T03:04:05Z", 1704164645000000000),
        ("2024-01-02T03:04:05.5+05:30", 1704144845500000000),
        ("2024-02-29T23:59:59.000000001-01:00", 1709254799000000001),
        ("1969-12-31T23:59:59.25Z", -750000000),
        ("0001-01-01T00:00:00Z", None),
        ("2024-13-02T03:04:05Z", None),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_a_time_stamp_is_nanoseconds_since_1970(text: str | None, expected: int | None) -> None:
    assert nanoseconds(text) == expected
