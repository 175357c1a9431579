"""Starting a box: three processes, and what each says to the lab.

    lab ── shim ── PID 1 of the box ── its program's children
     └──── helper ── a process that joined the box (``Box.run``)

The shim is PID 1's parent outside the pid namespace, as with every engine; it lives in the node's
network namespace where there is a node, is not charged to the box, and reports how PID 1 ended.
Each dies with its parent, by SIGKILL from the kernel, whatever happens to the lab.
"""

import os
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from whybox.kernel.libc import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    sethostname,
    setns,
    unshare,
)
from whybox.lab import network
from whybox.lab.groups import Groups
from whybox.lab.network import Network, Node
from whybox.lab.process import (
    FAILED,
    Line,
    Program,
    User,
    become,
    called,
    exit_status,
    fork,
    name_of,
    run,
    settle,
    silence,
    under_init,
)
from whybox.lab.rootfs import Rootfs

#: Where the ids of a box with a user namespace begin on the host, and how many there are.
FIRST_ID, IDS = 100_000, 65_536
#: What a shell says of a command that cannot be executed.
NOT_FOUND = 127


class Setup(Struct, frozen=True, kw_only=True):
    """All that the forked processes must know."""

    name: str
    program: Program
    rootfs: Rootfs
    groups: Groups
    user: User
    init: bool = False
    user_namespace: bool = False
    pid_namespace: bool = True
    network: Network | None = None
    sysctls: tuple[tuple[str, str], ...] = ()
    open_files: int | None = None
    """How many each process may have; ``None``: as many as the lab."""

    def assume(self) -> None:
        """Take on the limits and the user that all of its processes have."""
        if self.open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))
        become(self.user)


class Ended(Struct, frozen=True, kw_only=True):
    """How PID 1 ended."""

    status: int
    """As a shell says it: 128 and the signal's number, if it was one."""
    at_ns: int


class Joined(Struct, frozen=True, kw_only=True):
    """A process that joined a box, as the lab holds it."""

    helper: int
    """Its parent, outside the pid namespace."""
    pid: int
    line: Line


class Launched(Struct, frozen=True, kw_only=True):
    """A started box, as the lab holds it."""

    shim: int
    pid: int
    from_shim: Line
    from_box: Line

    def ended(self, seconds: float) -> Ended | None:
        """How PID 1 ended, once it has, waiting so long for it."""
        said = self.from_shim.hear(seconds)
        if said is None:
            return None
        if not said.startswith("ended "):
            # Somebody killed the shim, and PID 1 with it.
            return Ended(status=128 + signal.SIGKILL, at_ns=time.time_ns())
        _, status, at_ns = said.split()
        return Ended(status=int(status), at_ns=int(at_ns))


def launch(setup: Setup, wired: Callable[[int, int], None]) -> Launched:
    """Start a box; ``wired(pid, shim)`` is called before its program runs."""
    from_shim, shim_end = Line.pair()
    from_box, box_end = Line.pair()
    shim = fork(lambda: _shim(setup, shim_end, box_end), shim_end)
    shim_end.close()
    box_end.close()
    try:
        pid = _set_up(setup, from_shim, from_box)
        wired(pid, shim)
        from_box.tell("go")
        from_box.expect("running")
    except BaseException:
        _abandon(shim, from_shim, from_box)
        raise
    return Launched(shim=shim, pid=pid, from_shim=from_shim, from_box=from_box)


def _abandon(child: int, *lines: Line) -> None:
    """End a child of ours, which takes its own along."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for line in lines:
        line.close()


def _set_up(setup: Setup, from_shim: Line, from_box: Line) -> int:
    pid = int(from_shim.expect("child"))
    setup.groups.enter(pid)
    from_box.tell("go")
    from_box.expect("unshared")
    if setup.user_namespace:
        for file in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{file}", "w", encoding="ascii") as ids:
                ids.write(f"0 {FIRST_ID} {IDS}")
    if setup.network is not None:
        from_shim.tell("wire")
        from_shim.expect("wired")
    return pid


def join(setup: Setup, pid: int, program: Program) -> Joined:
    """One more process in the box whose PID 1 is ``pid``."""

    def body() -> int:
        settle(name_of(program), [theirs.fileno()])
        setup.assume()
        theirs.tell("running")
        return called(program)

    ours, theirs = Line.pair()
    helper = fork(lambda: _quiet_helper(setup, pid, theirs, body), theirs)
    theirs.close()
    try:
        return Joined(helper=helper, pid=_admitted(setup, ours), line=ours)
    except BaseException:
        _abandon(helper, ours)
        raise


def shell(setup: Setup, pid: int, argv: Sequence[str]) -> int:
    """Run a command in the box on the caller's terminal; its exit status."""

    def body() -> int:
        theirs.tell("running")
        settle("shell", [], terminal=True)
        setup.assume()
        return _execute(argv)

    ours, theirs = Line.pair()
    # The terminal's Ctrl-C is the command's, and it may make itself the terminal's foreground.
    quiet = (signal.SIGINT, signal.SIGQUIT, signal.SIGTTOU)
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in quiet}
    try:
        helper = fork(lambda: _helper(setup, pid, theirs, body), theirs)
        theirs.close()
        _admitted(setup, ours)
        return exit_status(os.waitpid(helper, 0)[1])
    finally:
        ours.close()
        if os.isatty(0):
            os.tcsetpgrp(0, os.getpgrp())
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _admitted(setup: Setup, line: Line) -> int:
    pid = int(line.expect("child"))
    setup.groups.enter(pid)
    line.tell("go")
    line.expect("running")
    return pid


def _shim(setup: Setup, line: Line, box_line: Line) -> int:
    settle("whybox-shim", [line.fileno(), box_line.fileno()])
    silence()
    node = None if setup.network is None else Node(setup.network)
    if setup.pid_namespace:
        unshare(CLONE_NEWPID)
    # Its other end is ours alone, so that it is closed when we die.
    alive, _ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        run(lambda: _box(setup, box_line, alive), box_line)
    box_line.close()
    os.close(alive)
    line.tell(f"child {pid}")
    if node is not None:
        line.expect("wire")
        node.wire(pid)
        line.tell("wired")
    _, status = os.waitpid(pid, 0)
    line.tell(f"ended {exit_status(status)} {time.time_ns()}")
    return 0


def _box(setup: Setup, line: Line, alive: int) -> int:
    """PID 1."""
    settle(name_of(setup.program), [line.fileno(), alive])
    os.umask(0)
    unshare(CLONE_NEWNS)
    setup.rootfs.mount()
    line.expect("go")  # it is in its control groups
    unshare(_own_namespaces(setup))
    sethostname(setup.name[:64])
    network.switch_loopback_on()
    for key, value in setup.sysctls:
        with open(f"/proc/sys/{key.replace('.', '/')}", "w", encoding="ascii") as file:
            file.write(value)
    line.tell("unshared")
    line.expect("go")  # ids are mapped and wires laid
    if setup.user_namespace:
        # Nobody whom the namespace does not know may make files in it.
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    setup.rootfs.enter(setup.groups)
    silence()
    setup.assume()
    # A parent outside the pid namespace is 0 whether it lives or not: its end of the pipe tells.
    if select.select([alive], [], [], 0)[0]:
        return FAILED
    os.close(alive)
    line.tell("running")
    return under_init(setup.program) if setup.init else called(setup.program)


def _own_namespaces(setup: Setup) -> int:
    flags = CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC
    if setup.groups.version == 2:
        flags |= CLONE_NEWCGROUP  # on v1 engines leave the host's, by default
    if setup.user_namespace:
        # A new mount namespace too, since mounting takes rights over the one that owns it.
        flags |= CLONE_NEWUSER | CLONE_NEWNS
    return flags


def _quiet_helper(setup: Setup, pid: int, line: Line, body: Callable[[], int]) -> int:
    settle("whybox-helper", [line.fileno()])
    silence()
    return _helper(setup, pid, line, body)


def _helper(setup: Setup, pid: int, line: Line, body: Callable[[], int]) -> int:
    """The parent of a process that joins; with a shell it ignores what the lab ignores."""

    def admitted() -> int:
        line.expect("go")  # it is in its control groups
        return body()

    _enter(setup, pid)
    child = os.fork()
    if child == 0:
        run(admitted, line)
    line.tell(f"child {child}")
    line.close()
    return exit_status(os.waitpid(child, 0)[1])


def _enter(setup: Setup, pid: int) -> None:
    """Join the namespaces of a process; its pid namespace is for our next child."""
    process = os.pidfd_open(pid)
    flags = _own_namespaces(setup) & ~CLONE_NEWUSER | CLONE_NEWNS
    # The pid namespace is the host's to enter, also where the others are the user namespace's.
    setns(process, flags | (CLONE_NEWPID if setup.pid_namespace else 0))
    if setup.user_namespace:
        setns(process, CLONE_NEWUSER)
    os.close(process)


def _execute(argv: Sequence[str]) -> int:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    kept = {name: os.environ[name] for name in ("TERM", "LANG") if name in os.environ}
    try:
        os.execvpe(argv[0], list(argv), {**kept, "PATH": path, "HOME": "/", "container": "whybox"})
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        return NOT_FOUND
