"""The bounds of an answer, and an answer that changes while it is given."""

import errno
import os
import subprocess
from contextlib import closing

import pytest

from tests.live.conftest import require
from tests.live.networks import delete, ip, path, unmet_need
from whybox.kernel import netlink, netns, rtnetlink


def test_an_answer_beyond_the_limit_is_refused() -> None:
    with netlink.Socket(limit_bytes=100) as sock:
        with pytest.raises(OSError, match="RTM_GETLINK") as refused:
            rtnetlink.links(sock)
        assert refused.value.errno == errno.EMSGSIZE


def test_an_answer_beyond_the_time_is_refused() -> None:
    with netlink.Socket(timeout_sec=0) as sock, pytest.raises(TimeoutError, match="RTM_GETADDR"):
        rtnetlink.addresses(sock)


CHURN = "link add churn type veth peer name churn0\nlink delete churn\n"


def test_a_dump_during_changes_is_whole_or_refused() -> None:
    """40 links fill three datagrams; links that come and go between them are noticed."""
    require(unmet_need())
    name = f"whybox-churn-{os.getpid()}"
    stable = [f"v{number}" for number in range(20)]
    ip("netns", "add", name)
    try:
        add = "".join(f"link add {each} type veth peer name p{each}\n" for each in stable)
        ip("-n", name, "-batch", "-", text=add)
        expected = {"lo", *stable, *(f"p{each}" for each in stable)}
        words = ["ip", "-n", name, "-batch", "-"]
        with (
            netns.netlink_socket(path(name)) as sock,
            subprocess.Popen(words, stdin=subprocess.PIPE, text=True) as changing,
            closing(changing.stdin or pytest.fail("no pipe")) as pipe,
        ):
            pipe.write(CHURN * 40)
            pipe.flush()
            whole = refused = 0
            for _ in range(300):
                try:
                    names = [link.name for link in rtnetlink.links(sock)]
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    refused += 1
                    continue
                whole += 1
                assert len(names) == len(set(names))
                assert set(names) - {"churn", "churn0"} == expected
        assert whole > 0, f"refused {refused} times"
    finally:
        delete(name)
