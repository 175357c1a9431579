"""Looking into another network namespace, and staying in one's own."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.live import networks
from tests.live.networks import FAR, NEAR, delete, eventually, ip, ip_json, path
from whybox.kernel import netns, rtnetlink


@pytest.fixture(scope="module", autouse=True)
def _networks() -> Iterator[None]:
    with networks.made():
        yield


def test_the_caller_stays_where_it_is_and_nothing_is_left() -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    threads, descriptors = threading.active_count(), os.listdir("/proc/self/fd")
    where = netns.call_in(path(FAR), lambda: os.readlink("/proc/thread-self/ns/net"))
    with netns.netlink_socket(path(FAR)) as sock:
        rtnetlink.links(sock)
    assert where == f"net:[{os.stat(path(FAR)).st_ino}]" != home
    assert os.readlink("/proc/thread-self/ns/net") == home
    assert os.readlink("/proc/self/ns/net") == home
    assert threading.active_count() == threads
    assert os.listdir("/proc/self/fd") == descriptors


def text_of(file: str) -> str:
    with open(file, encoding="utf-8") as opened:
        return opened.read()


def test_files_of_the_namespace_are_read_there() -> None:
    ip("netns", "exec", NEAR, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    ip("netns", "exec", FAR, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")
    for name, expected in ((NEAR, "1\n"), (FAR, "0\n")):
        forwarding = netns.call_in(path(name), lambda: text_of("/proc/sys/net/ipv4/ip_forward"))
        assert forwarding == expected
    devices = netns.call_in(path(FAR), lambda: text_of("/proc/thread-self/net/dev"))
    assert {line.split(":")[0].strip() for line in devices.splitlines()[2:]} == {"lo", "eth0"}


def test_a_function_that_does_not_come_back_is_left_alone() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError, match=FAR):
        netns.call_in(path(FAR), release.wait, timeout_sec=0.05)
    left = [each for each in threading.enumerate() if each.name == f"netns {path(FAR)}"]
    assert [each.daemon for each in left] == [True]
    release.set()
    left[0].join(5)
    assert not left[0].is_alive()


def test_an_error_there_is_an_error_here() -> None:
    with pytest.raises(ZeroDivisionError):
        netns.call_in(path(FAR), lambda: 1 // 0)


def test_a_missing_namespace_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="/run/netns/whybox-none"):
        netns.netlink_socket("/run/netns/whybox-none")


@pytest.mark.parametrize("other", ["/proc/self/ns/uts", "/dev/null"])
def test_what_is_no_network_namespace_is_refused_by_name(other: str) -> None:
    with pytest.raises(OSError, match=other) as refused:
        netns.netlink_socket(other)
    assert refused.value.errno == errno.EINVAL


UNPRIVILEGED = """
import sys
from whybox.kernel import netns, rtnetlink
with netns.netlink_socket("/proc/self/ns/net") as sock:
    rtnetlink.links(sock)
try:
    netns.netlink_socket(sys.argv[1])
except PermissionError as error:
    print(error.filename)
"""


def test_without_privilege_only_the_own_namespace_is_open() -> None:
    words = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", UNPRIVILEGED, path(FAR)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{path(FAR)}\n", "")


def test_a_socket_keeps_its_namespace_until_it_is_closed() -> None:
    name = f"whybox-kept-{os.getpid()}"
    ip("netns", "add", name)
    sock = netns.netlink_socket(path(name))
    try:
        ip("-n", NEAR, "link", "add", "kept", "type", "veth", "peer", "name", "eth0", "netns", name)
        delete(name)
        assert {link.name for link in rtnetlink.links(sock)} == {"lo", "eth0"}
    finally:
        sock.close()
        delete(name)
    eventually(
        lambda: all(each["ifname"] != "kept" for each in ip_json(NEAR, "link")),
        "the namespace outlived its last socket",
    )
