"""What it means to wait, uninterruptibly, in a function of the kernel.

A stack is what ``/proc/PID/stack`` says, the innermost function first; ``/proc/PID/wchan`` is its
first function that is no part of the scheduler. What is told from it is the kind of thing that is
waited for:

>>> kind(("percpu_rwsem_wait", "__percpu_down_read", "mnt_want_write", "path_openat"))
'frozen'
>>> kind(("percpu_rwsem_wait", "cgroup_attach_lock", "vfs_write"))
'lock'
>>> kind(("folio_wait_bit_common", "filemap_read", "nfs_file_read")), kind(("kernel_clone",))
('network', 'vfork')
"""

import re
from collections.abc import Iterable
from typing import Literal

Kind = Literal[
    "freezer",
    "frozen",
    "memory",
    "network",
    "fuse",
    "vfork",
    "swap",
    "journal",
    "device",
    "lock",
    "other",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: The read side of the lock that freeze_super() holds (include/linux/fs.h, sb_start_write()):
#: what stands between the wait and the operation that wants to write.
_LOCK_FRAMES = ("percpu_rwsem_wait", "__percpu_down_read", "percpu_down_read", "__sb_start_write")

#: Functions in which sb_start_write() and its kin were made part of their callers, and theirs.
_WRITERS = (
    "mnt_want_write",
    "sb_start_",
    "vfs_write",
    "vfs_writev",
    "vfs_iter_write",
    "vfs_iocb_iter_write",
    "vfs_fallocate",
    "vfs_truncate",
    "vfs_copy_file_range",
    "do_iter_write",
    "do_iter_readv_writev",
    "do_writev",
    "do_pwritev",
    "do_sendfile",
    "do_splice",
    "do_sys_ftruncate",
    "do_ftruncate",
    "file_start_write",
    "aio_write",
    "io_write",
    "ovl_",
    "ext4_page_mkwrite",
    "ext4_evict_inode",
    "xfs_filemap_",
    "xfs_trans_alloc",
    "filemap_page_mkwrite",
    "block_page_mkwrite",
    "btrfs_page_mkwrite",
    "btrfs_start_transaction",
    "start_transaction",
    "f2fs_vm_page_mkwrite",
    "touch_atime",
    "file_update_time",
    "iomap_page_mkwrite",
)

#: System calls that write to a file system, for when no stack may be read.
_WRITING_CALLS = _words(
    "write writev pwrite64 pwritev pwritev2 open openat openat2 creat mkdir mkdirat mknod mknodat "
    "unlink unlinkat rmdir rename renameat renameat2 link linkat symlink symlinkat truncate "
    "ftruncate fallocate chmod fchmod fchmodat chown fchown lchown fchownat utimensat futimesat "
    "utime utimes setxattr lsetxattr fsetxattr removexattr sendfile splice copy_file_range"
)

#: Sleeps that a signal interrupts. In D they are frozen, on v1 since commit f5d39b020809
#: ("freezer,sched: Rewrite core freezer logic") (in v6.1), and wait for nothing else.
_INTERRUPTIBLE = _words(
    "hrtimer_nanosleep do_nanosleep futex_wait_queue futex_wait_queue_me ep_poll do_epoll_wait "
    "do_sys_poll do_poll poll_schedule_timeout do_select do_sigtimedwait sigsuspend do_wait "
    "pipe_read anon_pipe_read wait_woken unix_stream_read_generic __skb_wait_for_more_packets "
    "inet_csk_accept n_tty_read do_signal_stop __x64_sys_pause __do_sys_pause"
)

#: The first rule that any function of the stack begins with: outer functions tell for whom the
#: inner ones wait, so what is general comes last.
_RULES: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("freezer", ("__refrigerator", "do_freezer_trap")),
    (
        "memory",
        (
            "mem_cgroup_handle_over_high",
            "__mem_cgroup_handle_over_high",
            "mem_cgroup_oom_synchronize",
            "try_to_free_mem_cgroup_pages",
            "try_to_free_pages",
            "do_try_to_free_pages",
            "reclaim_throttle",
            "throttle_direct_reclaim",
            "shrink_",
            "out_of_memory",
        ),
    ),
    (
        "network",
        (
            *("nfs_", "nfs3_", "nfs4_", "rpc_", "xprt_", "cifs_", "smb2_", "SMB2_", "smb3_"),
            *("compound_send_recv", "ceph_", "p9_", "v9fs_", "afs_", "dlm_", "gfs2_glock"),
            *("ocfs2_", "wait_for_response", "rbd_", "nbd_"),
        ),
    ),
    ("fuse", ("request_wait_answer", "fuse_", "__fuse_", "virtio_fs_")),
    ("vfork", ("wait_for_vfork_done", "kernel_clone", "_do_fork", "__do_sys_vfork")),
    ("swap", ("do_swap_page", "swap_read", "swapin_", "read_swap_cache", "swap_cluster_readahead")),
    (
        "journal",
        (
            *("jbd2_", "start_this_handle", "wait_transaction_locked", "add_transaction_credits"),
            *("do_get_write_access", "xlog_", "xfs_log_", "xfs_buf_lock", "xfs_buf_iowait"),
            *("btrfs_commit_transaction", "wait_current_trans", "wait_log_commit"),
            *("btrfs_sync_log", "f2fs_issue_checkpoint"),
        ),
    ),
    (
        "device",
        (
            *("io_schedule", "bit_wait_io", "folio_wait", "wait_on_page", "__folio_lock"),
            *("wait_on_buffer", "__wait_on_buffer", "__lock_buffer", "submit_bio", "bio_await"),
            *("blk_", "__blk_", "blkdev_", "__blkdev_", "bdev_", "rq_qos_wait", "wbt_wait"),
            *("iomap_dio", "__iomap_dio", "dio_", "do_blockdev", "balance_dirty_pages"),
            *("sync_inodes_sb", "wb_wait_for", "inode_sleep_on_writeback", "nvme_", "scsi_"),
            *("md_", "raid", "dm_", "throtl_", "read_cache_folio", "filemap_fault"),
        ),
    ),
    (
        "lock",
        (
            *("rwsem_", "down_", "__down", "__mutex_lock", "mutex_lock", "percpu_", "lock_rename"),
            *("cgroup_kn_lock", "rtnl_lock", "exp_funnel", "synchronize_", "__synchronize_"),
            *("rt_mutex_", "__rt_mutex", "__percpu_"),
        ),
    ),
)

#: For whom the storage is meant: there a wait of a moment is what a disk does.
STORAGE: frozenset[Kind] = frozenset({"device", "journal", "swap"})

_FRAME = re.compile(r"(?:\[<[0-9a-fx]*>\] )?(?P<name>[^\s+]+)")


def frames(text: str) -> tuple[str, ...]:
    """The functions in ``/proc/PID/stack``, the innermost first.

    >>> frames("[<0>] kernel_clone+0x1af/0x3e0\\n[<0>] __do_sys_vfork+0x5/0x10 [some_module]\\n")
    ('kernel_clone', '__do_sys_vfork')
    """
    found = (_FRAME.match(line) for line in text.splitlines()[:40])
    return tuple(match["name"] for match in found if match is not None)


def kind(stack: tuple[str, ...], call: str | None = None) -> Kind:
    """What is waited for; without a stack the system call tells a frozen file system.

    >>> kind(("percpu_rwsem_wait",), "openat"), kind(("percpu_rwsem_wait",), "clone")
    ('frozen', 'lock')
    """
    if _wants_to_write(stack, call):
        return "frozen"
    if stack and stack[0] in _INTERRUPTIBLE:
        return "freezer"
    for found, beginnings in _RULES:
        if any(name.startswith(beginnings) for name in stack):
            return found
    return "other"


def _wants_to_write(stack: tuple[str, ...], call: str | None) -> bool:
    if not stack or stack[0] not in _LOCK_FRAMES:
        return False
    outer = next((name for name in stack if name not in _LOCK_FRAMES), None)
    return call in _WRITING_CALLS if outer is None else outer.startswith(_WRITERS)


def shortened(stack: Iterable[str], most: int = 6) -> str:
    """The stack as one line, without how every system call begins.

    >>> shortened(("kernel_clone", "__do_sys_vfork", "do_syscall_64", "entry_SYSCALL_64"))
    'kernel_clone < __do_sys_vfork'
    """
    kept = [n for n in stack if not n.startswith(("do_syscall_64", "entry_", "x64_sys_", "el0"))]
    return " < ".join(kept[:most])
