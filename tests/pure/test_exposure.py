"""Bind mounts by the host's own paths, sockets of engines, and device nodes."""

from pathlib import Path

import pytest

from whybox.kernel import exposure
from whybox.kernel.host import Host
from whybox.kernel.mountinfo import Mount, parse

OWN = """
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /dev rw - devtmpfs devtmpfs rw
3 1 0:20 / /run rw - tmpfs tmpfs rw
4 1 8:2 /@home /home rw - btrfs /dev/sda2 rw
5 1 0:21 / /proc rw - proc proc rw
""".strip()


def mount(line: str) -> Mount:
    return parse(line)[0]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("9 8 8:1 / /host rw - ext4 /dev/sda1 rw", "/"),
        ("9 8 8:1 /etc /host rw - ext4 /dev/sda1 rw", "/etc"),
        ("9 8 8:2 /@home/joe /data rw - btrfs /dev/sda2 rw", "/home/joe"),
        ("9 8 8:2 /@other /data rw - btrfs /dev/sda2 rw", None),
        ("9 8 0:20 /docker.sock /s rw - tmpfs tmpfs rw", "/run/docker.sock"),
        ("9 8 0:99 / /proc rw - proc proc rw", None),
        ("9 8 0:21 / /hostproc rw - proc proc rw", "/proc"),
    ],
)
def test_a_mount_is_found_where_the_host_has_its_device(line: str, path: str | None) -> None:
    assert exposure.path_on(parse(OWN), mount(line)) == path


def tree(tmp_path: Path) -> Host:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(OWN)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/docker.sock").touch()
    return Host(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "socket"),
    [
        ("9 8 0:20 /docker.sock /s rw - tmpfs tmpfs rw", "/run/docker.sock"),
        ("9 8 8:1 /x/sock /var/run/docker.sock rw - ext4 /dev/sda1 rw", "/x/sock"),
        ("9 8 0:20 / /run ro - tmpfs tmpfs rw", "/run/docker.sock"),
        # The directory /run of the root file system, under the tmpfs that holds the socket.
        ("9 8 8:1 / /host rw - ext4 /dev/sda1 rw", None),
        ("9 8 8:1 /var/lib /data rw - ext4 /dev/sda1 rw", None),
    ],
)
def test_the_socket_of_an_engine_is_seen_by_itself_and_in_a_directory(
    tmp_path: Path, line: str, socket: str | None
) -> None:
    (shown,) = exposure.shown(tree(tmp_path), [mount(line)], from_outside=True)
    assert shown.socket == socket


def test_from_inside_only_names_show(tmp_path: Path) -> None:
    mounts = parse(
        "9 8 0:20 /docker.sock /s rw - tmpfs tmpfs rw\n8 7 8:1 /etc /e rw - ext4 /dev/sda1 rw"
    )
    sock, etc = exposure.shown(tree(tmp_path), mounts, from_outside=False)
    assert (sock.host_path, sock.socket) == (None, "/docker.sock")
    assert (etc.host_path, etc.socket) == (None, None)


def test_a_mount_is_writable_if_it_and_its_file_system_are(tmp_path: Path) -> None:
    lines = [
        "9 8 8:1 / /a rw - ext4 /dev/sda1 rw",
        "9 8 8:1 / /b ro - ext4 /dev/sda1 rw",
        "9 8 8:1 / /c rw - ext4 /dev/sda1 ro",
    ]
    shown = exposure.shown(tree(tmp_path), map(mount, lines), from_outside=True)
    assert [one.writable for one in shown] == [True, False, False]


def test_ordinary_files_in_dev_are_no_devices_and_links_lead_nowhere(tmp_path: Path) -> None:
    dev = tmp_path / "proc/7/root/dev"
    dev.mkdir(parents=True)
    (dev / "shm").mkdir()
    (dev / "vda").touch()
    assert exposure.devices(Host(str(tmp_path)), 7, ()) == ()
    linked = tmp_path / "proc/8/root"
    linked.mkdir(parents=True)
    (linked / "dev").symlink_to("/dev")
    assert exposure.devices(Host(str(tmp_path)), 8, ()) is None


def test_a_dev_that_a_program_serves_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "proc/7/root/dev").mkdir(parents=True)
    seen = parse("9 8 0:70 / /dev rw - fuse.hang hang rw")
    assert exposure.devices(Host(str(tmp_path)), 7, seen) is None
