"""kernel/inotify against the kernel: what a user has left, asked as that user, and who has it."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from whybox.kernel import inotify
from whybox.kernel.host import Host

UID = 61_046
LIMIT = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())

_libc = ctypes.CDLL(None)

#: In a user namespace of its own, whose limits are nobody else's.
_ONE_WATCH = """
import ctypes, os
from whybox.kernel import inotify, libc
libc.unshare(libc.CLONE_NEWUSER)
for file, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
    open(f"/proc/self/{file}", "w").write(text)
open("/proc/sys/user/max_inotify_watches", "w").write("1")
before = inotify.ask(0, watch=True)
import time; time.sleep(0.2)  # until the kernel has let go of that one
kept = ctypes.CDLL(None).inotify_init1(0)
ctypes.CDLL(None).inotify_add_watch(kept, b"/", 0x400)
print(before.watch, inotify.ask(0, watch=True).watch, inotify.ask(0).instance)
"""


@contextmanager
def holding(instances: int) -> Iterator[int]:
    """A process of that user with so many instances; its pid."""
    ready, told = os.pipe()
    wait, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgid(UID)
        os.setuid(UID)
        os.close(end)
        for _ in range(instances):
            _libc.inotify_init1(0)
        os.write(told, b"x")
        os.read(wait, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        yield pid
    finally:
        os.close(end)
        os.waitpid(pid, 0)
        for descriptor in (ready, told, wait):
            os.close(descriptor)


def test_a_user_that_has_all_of_them_gets_no_more_and_others_do() -> None:
    with holding(LIMIT) as pid:
        short = inotify.shortage(Host(), UID, (), watches=False)
        assert short is not None
        assert (short.limit, short.watches) == (LIMIT, False)
        assert [(h.pid, h.instances) for h in short.holders] == [(pid, LIMIT)]
        assert inotify.ask(UID + 1).instance is True
        assert inotify.ask(os.geteuid()).instance is True
    assert inotify.shortage(Host(), UID, (), watches=False) is None


def test_asking_takes_none_away() -> None:
    with holding(LIMIT - 1):
        for _ in range(20):
            assert inotify.ask(UID).instance is True


def test_asking_as_somebody_else_leaves_us_as_we_were() -> None:
    before = (os.getresuid(), os.stat("/proc/self").st_uid)
    inotify.ask(UID)
    assert (os.getresuid(), os.stat("/proc/self").st_uid) == before
    assert "Uid:\t0" in Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()


def test_instances_and_watches_are_told_apart() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ONE_WATCH], capture_output=True, text=True, timeout=60
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("no user namespaces here")
    assert done.stdout.split() == ["True", "False", "True"], done.stderr


def test_watches_are_counted_line_by_line(tmp_path: Path) -> None:
    kept = _libc.inotify_init1(0)
    try:
        for number in range(7):
            (tmp_path / str(number)).mkdir()
            _libc.inotify_add_watch(kept, os.fsencode(tmp_path / str(number)), 0x400)
        (mine,) = inotify._holders(Host(), [os.getpid()], watches=True)
        assert (mine.instances, mine.watches) == (1, 7)
    finally:
        os.close(kept)
