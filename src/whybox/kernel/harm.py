"""Which refusals are no trouble: questions, wishes, and what was got in another way. Pure."""

from whybox.kernel.denials import Denied
from whybox.kernel.host import ROOT_HOME
from whybox.kernel.intent import words

#: After so many more calls the end of a process is still the answer to a refusal: messages are
#: looked up and written in between. Who only looked around ends at once if that was its task.
SOON, AT_ONCE, WHILE_WISHING = 400, 40, 60

#: Better not than not at all: the program is as well off without.
_WISHES = words(
    "setpriority sched_setscheduler sched_setparam sched_setattr sched_setaffinity ioprio_set "
    "setrlimit prlimit64 mlock mlock2 mlockall mbind set_mempolicy migrate_pages move_pages "
    "epoll_ctl fadvise64 setxattr lsetxattr fsetxattr io_uring_setup io_uring_register "
    "perf_event_open bpf userfaultfd syslog keyctl add_key request_key process_vm_readv kcmp "
    "personality get_mempolicy pidfd_getfd fanotify_init fanotify_mark name_to_handle_at "
    "open_by_handle_at prctl ioctl fchown fcntl membarrier ioperm iopl"
)
_QUESTIONS = words(
    "getpriority sched_getscheduler sched_getparam sched_getattr getxattr fgetxattr listxattr "
    "ustat fstatfs process_madvise"
)
#: No right is asked for: who leads a session or a group may not make or join another (setsid(2),
#: setpgid(2)). Shells and daemons try it all the same.
_BY_RANK = words("setpgid setsid")
#: Files of the kernel that make something better.
_WISHED_FILES = frozenset(("oom_score_adj", "oom_adj", "loginuid", "timerslack_ns", "autogroup"))
#: Kept to be faster the next time, or to see what others do: every program does without.
_CACHES = ("/__pycache__/", "/.cache/", "/fontconfig/", "/nscd/")
_LOCKS = ("/.git/index.lock",)
#: Where programs keep settings of a user, and what they were told before.
_HOMES = ("/.config/", "/.local/", f"{ROOT_HOME}/.")


def harmless(one: Denied) -> str | None:
    """Why it is no trouble, or ``None``."""
    if one.how in ("trapped", "killed"):
        return None
    if one.made_good >= one.times:
        return "it then got the same in another way"
    if one.call in _BY_RANK and one.how == "entered":
        return "it leads its session or its group already, and that is no matter of rights"
    path = one.path or one.said
    if any(part in f"{path}/" for part in _CACHES) or path.endswith((".pyc", *_LOCKS)):
        return None if ended(one, AT_ONCE) else "it keeps there what it can do without"
    if any(part in f"{path}/" for part in _HOMES) and one.uid != 0:
        return None if ended(one, SOON) else "it looks there for settings, and goes on without"
    if _asks(one):
        return None if ended(one, AT_ONCE) else "it only asked"
    if one.call in _WISHES or path.rsplit("/", 1)[-1] in _WISHED_FILES:
        return None if ended(one, WHILE_WISHING) else "it is as well off without"
    return _reads(one, path)


def _reads(one: Denied, path: str) -> str | None:
    what = one.intent.what
    if what == "list" or (what == "read" and path.startswith(("/proc/", "/sys/"))):
        return None if ended(one, AT_ONCE) else "it looked around and went on"
    if what not in ("read", "enter") or ended(one, SOON):
        return None
    return "it went on without" if one.times < 2 or _is_private(path, one.uid) else None


def _asks(one: Denied) -> bool:
    if one.call in ("kill", "tgkill", "tkill", "pidfd_send_signal"):
        nth = 2 if one.call == "tgkill" else 1
        return len(one.arguments) > nth and one.arguments[nth] == 0
    return one.call in _QUESTIONS or one.intent.what in ("look", "ask")


def _is_private(path: str, uid: int) -> bool:
    """Settings that may be there, and need not: a name with a dot, or root's home."""
    hidden = any(part.startswith(".") for part in path.split("/"))
    return hidden or (uid != 0 and path.startswith(f"{ROOT_HOME}/"))


def ended(one: Denied, within: int) -> bool:
    """Whether its process then ended with a failure, so many calls later at most."""
    return one.failed > 0 and one.calls_to_end is not None and one.calls_to_end <= within


def is_main(one: Denied) -> tuple[bool, bool, bool, bool, int]:
    """The order of troubles: what cannot be done before what cannot be read, the fatal first."""
    mild = one.call in _WISHES or _asks(one)
    return (
        mild,
        one.intent.what in ("read", "list"),
        not ended(one, SOON),
        not one.last,
        -one.times,
    )
