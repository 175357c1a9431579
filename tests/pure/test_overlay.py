"""Overlay mounts, and walks through upper directories made of ordinary files.

The marks here are ``user.overlay.*``, which need no privileges; real copies are in tests/live.
"""

import os
import stat
import struct
import time
from pathlib import Path

import pytest

from whybox.kernel import copies, overlay, statx, surplus, upper
from whybox.kernel.host import Host
from whybox.kernel.mountinfo import parse
from whybox.kernel.overlay import Overlay
from whybox.kernel.surplus import Accounts, Written
from whybox.kernel.task import Io, TaskId
from whybox.kernel.walk import walking

MIB = 1 << 20
#: Of a copy on ext4 (6.18): FILEID_INO32_GEN of inode 15343758.
HANDLE = bytes.fromhex("00fb1d0001000000000000000000000000000000008e20ea003ae36ad1")


@pytest.mark.parametrize("option", ["volatile", "fsync=volatile"])
def test_a_mount_that_syncs_nothing_says_so_in_an_old_and_a_new_word(option: str) -> None:
    text = f"47 43 0:39 / / rw - overlay o rw,lowerdir=/l,upperdir=/u,workdir=/w,{option}\n"
    assert overlay.overlays(parse(text))[0].volatile


def test_a_writable_overlay_is_read_from_mountinfo() -> None:
    text = (
        "47 43 0:39 / / rw - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w\n"
        "48 47 0:40 / /ro ro - overlay overlay ro,lowerdir=/l/A:/l/B\n"
        "49 47 0:39 /data /again rw - overlay overlay rw,lowerdir=/l/A,upperdir=/u,workdir=/w\n"
        "50 47 0:41 / /v rw - overlay o rw,lowerdir+=/l/A,lowerdir+=/l/c:d,upperdir=/v\\0541,"
        "volatile,userxattr\n"
    )
    root, other = overlay.overlays(parse(text))
    assert (root.mountpoint, root.upperdir, root.workdir) == ("/", "/u", "/w")
    assert root.lowerdirs == ("/l/A", "/l/B")
    assert (root.xattr, root.volatile) == ("trusted.overlay.", False)
    assert (other.upperdir, other.lowerdirs) == ("/v,1", ("/l/A", "/l/c:d"))
    assert (other.xattr, other.volatile) == ("user.overlay.", True)


def test_the_inode_of_the_source_is_in_the_mark() -> None:
    assert overlay.origin_inode(HANDLE) == 15343758
    xfs = HANDLE[:4] + b"\x81" + HANDLE[5:21] + struct.pack("<QI", 1 << 40, 7)
    assert overlay.origin_inode(xfs) == 1 << 40


@pytest.mark.parametrize("handle", [b"", b"\x00", HANDLE[:20], b"\x00" * 40, HANDLE[:4] + b"\x99"])
def test_a_mark_that_names_no_inode_is_none(handle: bytes) -> None:
    assert overlay.origin_inode(handle) is None


def test_statx_agrees_with_stat_and_knows_the_birth(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 5000)
    known = os.stat(tmp_path / "f")
    top = os.open(tmp_path, os.O_PATH)
    try:
        seen = statx.statx(top, "f")
    finally:
        os.close(top)
    assert (seen.ino, seen.size_bytes, seen.mode) == (known.st_ino, 5000, known.st_mode)
    assert (seen.nlink, seen.ctime_ns) == (1, known.st_ctime_ns)
    assert seen.allocated_bytes == known.st_blocks * 512
    assert seen.btime_ns is None or seen.btime_ns <= seen.ctime_ns


def test_statx_does_not_follow_a_link_and_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    top = os.open(tmp_path, os.O_PATH)
    try:
        assert stat.S_ISLNK(statx.statx(top, "link").mode)
        with pytest.raises(FileNotFoundError, match="missing"):
            statx.statx(top, "missing")
    finally:
        os.close(top)


@pytest.mark.parametrize("path", ["../x", "/etc", "link", "link/ssl", "sub/../../x"])
def test_nothing_leads_out_of_the_directory(tmp_path: Path, path: str) -> None:
    (tmp_path / "top/sub").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    (tmp_path / "top/link").symlink_to("/etc")
    top = os.open(tmp_path / "top", os.O_PATH)
    try:
        with pytest.raises(OSError, match=r"link|cross-device"):
            statx.open_beneath(top, path, os.O_RDONLY)
        os.close(statx.open_beneath(top, "sub", os.O_PATH))
    finally:
        os.close(top)


def test_a_walk_sees_every_directory_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").touch()
    (tmp_path / "a/link").symlink_to("/")
    os.mkfifo(tmp_path / "a/pipe")
    with walking(str(tmp_path)) as walk:
        seen = {d.path: [e.name for e in d.files] for d in walk.directories()}
    assert seen == {".": [], "a": [], "a/b": ["f"]}
    assert walk.incomplete is None


def test_a_walk_that_is_cut_short_says_so(tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / str(number)).mkdir()
    with walking(str(tmp_path), most_entries=500) as walk:
        assert len(list(walk.directories())) == 1
    assert walk.incomplete == "it holds more than 500 entries"


class Tree:
    """A lower and an upper directory of a mount with marks that need no privileges."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("lower", "upper", "work", "proc/self"):
            (root / name).mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
        self.host = Host(str(root), window_seconds=1)
        self.mount = Overlay(
            mountpoint="/",
            upperdir="/upper",
            workdir="/work",
            lowerdirs=("/lower",),
            userxattr=True,
            volatile=False,
        )

    def lower(self, name: str, size: int) -> Path:
        """A file of the image."""
        path = self.root / "lower" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
        return path

    def copy(self, name: str, size: int, mark: bytes | None) -> Path:
        """A file of the upper directory, with the mark of a copy or without."""
        path = self.root / "upper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        if mark is not None:
            try:
                os.setxattr(path, "user.overlay.origin", mark)
            except OSError as error:
                pytest.skip(f"xattrs of {self.root}: {error.strerror}")
        return path


def handle_of(path: Path) -> bytes:
    """The mark of a copy of this file, as ext4 would have it."""
    return HANDLE[:21] + struct.pack("<II", path.stat().st_ino & 0xFFFFFFFF, 0)


def test_only_what_landed_since_the_survey_is_told(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    source = tree.lower("data/big", 2 * MIB)
    tree.copy("data/old", 3 * MIB, b"")
    time.sleep(0.03)  # stamps are by the last tick: what is that young might be new
    survey = upper.survey(tree.host, tree.mount)
    assert [f.path for f in survey.upper.files] == ["data/old"]
    with (tmp_path / "upper/data/old").open("ab") as file:
        file.write(b"x")
    tree.copy("data/big", 5 * MIB, handle_of(source))
    tree.copy("data/own", 5 * MIB, None)
    (seen,) = upper.landed(tree.host, tree.mount, survey).files
    assert (seen.path, seen.size_bytes, seen.metacopy) == ("data/big", 5 * MIB, False)
    assert seen.lower_bytes == 2 * MIB
    assert seen.contents_bytes == 2 * MIB
    assert seen.took_ns is None or seen.took_ns < 10_000_000_000


def test_a_lower_file_that_is_not_the_source_does_not_count(tmp_path: Path) -> None:
    """A copy was renamed over the name of another lower file."""
    tree = Tree(tmp_path)
    other = tree.lower("other", 100)
    tree.lower("big", 2 * MIB)
    survey = upper.survey(tree.host, tree.mount)
    tree.copy("big", 3 * MIB, handle_of(other))
    (seen,) = upper.landed(tree.host, tree.mount, survey).files
    assert (seen.lower_bytes, seen.contents_bytes) == (None, 3 * MIB)


def test_a_hole_in_the_lower_file_is_not_copied(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    sparse = tree.lower("sparse", 4096)
    os.truncate(sparse, 64 * MIB)
    survey = upper.survey(tree.host, tree.mount)
    tree.copy("sparse", 4096, handle_of(sparse))
    (seen,) = upper.landed(tree.host, tree.mount, survey).files
    assert seen.lower_bytes is not None
    assert seen.lower_bytes < MIB


def test_an_unmarked_file_over_one_with_several_names_may_be_a_copy(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    os.link(tree.lower("big", 2 * MIB), tmp_path / "lower/second")
    tree.lower("single", 2 * MIB)
    survey = upper.survey(tree.host, tree.mount)
    tree.copy("big", 2 * MIB, None)
    tree.copy("single", 2 * MIB, None)
    after = upper.landed(tree.host, tree.mount, survey)
    assert after.files == ()
    assert [f.path for f in after.unmarked] == ["big"]


def test_a_name_that_is_not_text_is_harmless(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    survey = upper.survey(tree.host, tree.mount)
    tree.copy(os.fsdecode(b"\xff\x1b[2J"), 10, b"")
    (seen,) = upper.landed(tree.host, tree.mount, survey).files
    assert seen.path.encode() == b"\\udcff\\x1b[2J"


def test_without_a_window_nothing_is_walked_twice(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.host.window_seconds = 0
    watched = upper.end(tree.host, tree.mount, upper.begin(tree.host, tree.mount))
    assert (watched.reason, watched.after) == (None, None)
    assert watched.before is not None


def test_an_upper_directory_of_another_place_is_an_obstacle(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    assert overlay.obstacle(tree.host, tree.mount) is None
    (tmp_path / "work").rmdir()
    tree.host.next_moment()
    assert "cannot be seen from here" in str(overlay.obstacle(tree.host, tree.mount))


def test_an_upper_directory_that_may_hang_is_not_opened(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    with (tmp_path / "proc/self/mountinfo").open("a") as file:
        file.write("2 1 0:70 / /upper rw - fuse.sshfs x rw\n")
    assert "fuse.sshfs" in str(overlay.obstacle(tree.host, tree.mount))


def io(write_bytes: int, wchar: int) -> tuple[str, Io]:
    return "db", Io(rchar=0, wchar=wchar, read_bytes=0, write_bytes=write_bytes)


def test_a_surplus_is_what_was_written_beyond_what_was_given(tmp_path: Path) -> None:
    old, new, plain = (TaskId(pid=n, start_ticks=n) for n in (1, 2, 3))
    before = Accounts(inside={old: io(50 * MIB, 50 * MIB), plain: io(0, 0)})
    after = Accounts(
        inside={
            old: io(60 * MIB, 50 * MIB + 1),
            new: io(3 * MIB, 0),
            plain: io(9 * MIB, 9 * MIB),
        },
        parent={TaskId(pid=9, start_ticks=9): io(7 * MIB, 7 * MIB)},
    )
    seen = surplus.written(Host(str(tmp_path)), before, after)
    assert [(w.pid, w.surplus_bytes) for w in seen.writers] == [(1, 10 * MIB - 1), (2, 3 * MIB)]
    assert seen.surplus_bytes == 13 * MIB - 1
    assert seen.wchar == 9 * MIB + 1  # the parent's own is not the container's


@pytest.mark.parametrize(
    ("stack", "copying"),
    [
        ("[<0>] ovl_copy_up_data+0x1\n[<0>] ovl_copy_up_flags+0x2\n", True),
        ("[<0>] ep_poll+0x1\n", False),
        (None, None),
    ],
)
def test_a_copy_under_way_shows_in_the_stack(
    tmp_path: Path, stack: str | None, copying: bool | None
) -> None:
    thread = tmp_path / "proc/7/task/8"
    thread.mkdir(parents=True)
    if stack is not None:
        (thread / "stack").write_text(stack)
    assert surplus.is_copying(Host(str(tmp_path)), 7) is copying


def test_a_process_that_has_gone_copies_nothing_that_could_be_told(tmp_path: Path) -> None:
    assert surplus.is_copying(Host(str(tmp_path)), 7) is None


def test_a_mount_that_was_not_watched_has_no_copies(tmp_path: Path) -> None:
    watched = upper.Watched(mount=Tree(tmp_path).mount, reason="out of sight")
    nobody = Written(wchar=0, surplus_bytes=0, writers=())
    assert copies.copied(watched, nobody).files == ()
