"""Which gate refused a call: the one fact that decides, in words. Pure."""

import stat

from msgspec import Struct

from whybox.kernel import capability
from whybox.kernel.access import R, Step, W, X
from whybox.kernel.denials import Denied
from whybox.kernel.intent import words

_DAC = 0b110  # DAC_OVERRIDE, DAC_READ_SEARCH
_BITS = {name: 1 << nth for nth, name in enumerate(capability.NAMES)}
_NETWORK = words("sendto sendmsg sendmmsg connect")
_SETS_IDS = words("setgroups setuid setgid setresuid setresgid setreuid setregid")


class Gate(Struct, frozen=True, kw_only=True):
    """What refused it."""

    name: str
    """``seccomp``, ``capability``, ``owner or mode``, ``mount option``, ``user namespace``,
    ``device rule``, ``limit``, ``attribute``, ``port``, ``packet filter``, ``file system``,
    ``security module`` or ``unknown``."""
    says: str
    """A sentence without its full stop."""
    source: str
    """The kernel file or event that says it."""
    certain: bool = True
    step: Step | None = None
    """The component of the path that bars the way."""
    lacks: int = 0
    """Of R, W, X what it does not let."""
    option: str | None = None


def gate(one: Denied, port_start: int | None = None) -> Gate:
    """The gate that refused a call."""
    if one.how in ("seccomp", "trapped", "killed"):
        return _seccomp(one)
    if one.errno == "EROFS":
        return _read_only(one)
    if one.errno == "EINVAL":
        return _unmapped(one)
    beyond = one.capabilities & ~_DAC
    if beyond:
        return _capability(one, beyond, port_start)
    return _of_file(one) or _elsewhere(one)


def _seccomp(one: Denied) -> Gate:
    if one.how == "seccomp":
        says = (
            f"the seccomp profile refuses {one.call}: it left the kernel without having entered, "
            "and no capability helps"
        )
    else:
        says = f"the seccomp profile answers {one.call} with SIGSYS"
    return Gate(name="seccomp", says=says, source="raw_syscalls:sys_exit without sys_enter")


def _read_only(one: Denied) -> Gate:
    where = one.mount
    if where is None:
        says = "the file system is mounted read-only"
        return Gate(name="mount option", says=says, source="sys_exit: EROFS", option="ro")
    whole = "ro" in where.whole and "ro" not in where.options
    says = (
        f"the {where.fstype} at {where.mountpoint} is itself read-only, for everybody"
        if whole
        else f"{where.mountpoint} ({where.fstype}) is mounted read-only here (ro)"
    )
    return Gate(name="mount option", says=says, source=_mountinfo(one), option="ro")


def _mountinfo(one: Denied) -> str:
    return f"/proc/{one.pid}/mountinfo"


def _unmapped(one: Denied) -> Gate:
    says = (
        "it lives in a user namespace that has no such id: what is not in uid_map and gid_map can "
        "belong to nobody in it"
    )
    return Gate(name="user namespace", says=says, source=f"/proc/{one.pid}/uid_map")


def _capability(one: Denied, wanted: int, port_start: int | None) -> Gate:
    names = " or ".join(capability.names(wanted))
    source = f"capability:cap_capable {names}"
    if wanted & ~one.elsewhere == 0:
        says = (
            f"it has {names} in its own user namespace, and this belongs to another one "
            f"({one.site or 'the kernel'} asked there)"
        )
        return Gate(name="user namespace", says=says, source=source)
    if one.port is not None and wanted & _BITS["NET_BIND_SERVICE"]:
        start = 1024 if port_start is None else port_start
        says = (
            f"port {one.port} is below {start} (net.ipv4.ip_unprivileged_port_start of its network "
            "namespace), which takes NET_BIND_SERVICE"
        )
        return Gate(name="port", says=says, source=source)
    if wanted & (_BITS["FOWNER"] | _BITS["CHOWN"]) and one.way is not None and one.way.steps:
        return _not_owner(one, names, source)
    if wanted & _BITS["SYS_RESOURCE"] and one.call in ("setrlimit", "prlimit64"):
        says = "a hard limit (rlimit) is raised by nobody without SYS_RESOURCE"
        return Gate(name="limit", says=says, source=source)
    asked = f" ({one.site} asked for it)" if one.site else ""
    says = f"it takes the capability {names}, which uid {one.uid} does not have{asked}"
    return Gate(name="capability", says=says, source=source)


def _not_owner(one: Denied, names: str, source: str) -> Gate:
    assert one.way is not None
    last = one.way.steps[-1]
    above = one.way.steps[-2] if len(one.way.steps) > 1 else last
    if one.intent.what == "remove" and above.sticky:
        says = (
            f"{above.path} is sticky ({stat.filemode(above.mode)}): only who owns {last.path} "
            f"(uid {last.uid}) or the directory removes it, or who has {names}"
        )
    elif one.intent.what == "create":
        says = f"{last.path} belongs to uid {last.uid}: to link it takes its owner or {names}"
    else:
        says = (
            f"{last.path} belongs to uid {last.uid}, and uid {one.uid} is not its owner: "
            f"that takes {names}"
        )
    return Gate(name="owner or mode", says=says, source=source, step=last)


def _of_file(one: Denied) -> Gate | None:
    """Owner, mode, attribute and the options of its mount."""
    if one.errno == "EPERM" and (attribute := _attribute(one)) is not None:
        return attribute
    options = () if one.mount is None else one.mount.options
    executes = one.intent.what == "execute" or one.call in ("mmap", "mprotect")
    if executes and "noexec" in options and one.mount is not None and not one.capabilities:
        says = f"{one.mount.mountpoint} ({one.mount.fstype}) is mounted noexec"
        return _option(one, "noexec", says)
    barred = bar(one)
    if barred is not None:
        return _barred(one, *barred)
    if one.capabilities & _DAC:
        says = "owner and mode of a component of its path do not let it"
        if one.way is not None and one.way.stopped is not None:
            says += f" (which one is not seen: {one.way.stopped})"
        return Gate(name="owner or mode", says=says, source="capability:cap_capable DAC_OVERRIDE")
    return _node(one, options) or _remote(one) or _protected(one)


def _option(one: Denied, option: str, says: str) -> Gate:
    return Gate(name="mount option", says=says, source=_mountinfo(one), option=option)


def _attribute(one: Denied) -> Gate | None:
    steps = () if one.way is None else one.way.steps
    for step in reversed(steps[-2:]):
        if step.immutable or step.append_only:
            kind = "immutable (chattr +i)" if step.immutable else "append-only (chattr +a)"
            says = f"{step.path} is {kind}, which binds root too"
            return Gate(name="attribute", says=says, source=f"statx {step.path}", step=step)
    return None


def bar(one: Denied) -> tuple[Step, int] | None:
    """The first component whose owner and mode bar the way, and what it does not let."""
    way = one.way
    if way is None or not way.steps or one.errno != "EACCES":
        return None
    whole = way.missing is None and way.stopped is None
    above = way.steps[:-1] if whole else way.steps
    if one.held & _BITS["DAC_OVERRIDE"] and not one.own_user_ns:
        return _executable(one, way.steps[-1]) if whole else None
    last = way.steps[-1]
    enters = not whole or one.intent.what in ("remove", "create")
    for step in above:
        wanted = X if stat.S_ISDIR(step.mode) else 0
        if step is above[-1] and enters and way.stopped is None:
            wanted |= one.intent.of_parent
        if wanted & ~step.allowed:
            return step, wanted & ~step.allowed
    if whole and one.intent.of_file & ~last.allowed:
        return last, one.intent.of_file & ~last.allowed
    return None


def _executable(one: Denied, last: Step) -> tuple[Step, int] | None:
    """What nobody may execute root may not either."""
    if one.intent.what == "execute" and not last.mode & 0o111 and not stat.S_ISDIR(last.mode):
        return last, X
    return None


def _barred(one: Denied, step: Step, lacks: int) -> Gate:
    directory = stat.S_ISDIR(step.mode)
    writes, passes = ("write in", "pass") if directory else ("write", "execute")
    words = {R: "read", W: writes, X: passes}
    wants = " or ".join(word for bit, word in words.items() if lacks & bit)
    listed = " with an access list" if step.listed else ""
    root = ", since it is root without DAC_OVERRIDE" if one.uid == 0 else ""
    if one.own_user_ns and not one.capabilities:
        root = ", and its user namespace has no id for that owner, so no right of it reaches there"
    says = (
        f"{step.path} belongs to {step.uid}:{step.gid} with mode "
        f"{stat.filemode(step.mode)}{listed}, which does not let uid {one.uid} (gid {one.gid}) "
        f"{wants} it{root}"
    )
    source = f"stat {step.path}"
    return Gate(name="owner or mode", says=says, source=source, step=step, lacks=lacks)


def _node(one: Denied, options: tuple[str, ...]) -> Gate | None:
    """A device: by its mount, or by the devices controller."""
    last = one.way.steps[-1] if one.way is not None and one.way.steps else None
    made = one.call in ("mknod", "mknodat")
    if not made and (last is None or not (stat.S_ISCHR(last.mode) or stat.S_ISBLK(last.mode))):
        return None
    if one.errno == "EACCES" and "nodev" in options and one.mount is not None:
        return _option(one, "nodev", f"{one.mount.mountpoint} is mounted nodev")
    if one.errno != "EPERM" or one.device_allowed:
        return None
    known = one.device_allowed is False
    says = "the devices controller of its control group does not let it have this device"
    source = "devices.list" if known else "sys_exit: EPERM, owner and mode let it"
    return Gate(name="device rule", says=says, source=source, certain=known)


def _remote(one: Denied) -> Gate | None:
    if one.mount is None or one.way is None or one.way.stopped is None:
        return None
    if "decides itself" not in one.way.stopped:
        return None
    says = (
        f"{one.mount.mountpoint} is {one.mount.fstype}: its server decides, which may take root "
        "for nobody (root_squash)"
    )
    return Gate(name="file system", says=says, source=_mountinfo(one), certain=False)


def _protected(one: Denied) -> Gate | None:
    """fs.protected_regular and its kin: foreign files in sticky directories."""
    steps = () if one.way is None else one.way.steps
    if one.errno != "EACCES" or len(steps) < 2 or not one.intent.creates:
        return None
    last, above = steps[-1], steps[-2]
    if not above.sticky or last.uid in (one.uid, above.uid) or one.way is None or one.way.missing:
        return None
    says = (
        f"{above.path} is sticky, and {last.path} belongs to uid {last.uid}: there the kernel "
        "opens no foreign file to be created (fs.protected_regular, fs.protected_fifos)"
    )
    return Gate(name="owner or mode", says=says, source=f"stat {above.path}", step=last)


def _elsewhere(one: Denied) -> Gate:
    """No capability was asked for, and no mode refuses: what is left."""
    if one.call in _NETWORK:
        return _of_packet(one)
    if one.call in _SETS_IDS and one.own_user_ns:
        says = "its user namespace does not let groups be set (/proc/PID/setgroups: deny)"
        return Gate(name="user namespace", says=says, source=f"/proc/{one.pid}/setgroups")
    if one.own_user_ns and one.errno == "EACCES" and one.way is not None:
        says = "an owner on its way has no id in its user namespace, where no right of it reaches"
        return Gate(name="user namespace", says=says, source=f"/proc/{one.pid}/uid_map")
    if one.call in ("setrlimit", "prlimit64"):
        says = "it is more than the kernel lets anybody have (fs.nr_open)"
        return Gate(name="limit", says=says, source="sys_exit: EPERM")
    if _confined(one.label):
        says = (
            f"owner, mode, mount and capabilities let it, so it is the security module: it runs "
            f"under the profile {one.label}"
        )
        source = f"/proc/{one.pid}/attr/current"
        return Gate(name="security module", says=says, source=source, certain=False)
    says = (
        "no capability was asked for, and neither owner and mode nor a mount option refuses it: a "
        "security module (Landlock shows nowhere), a limit, or the argument itself"
    )
    return Gate(name="unknown", says=says, source=f"sys_exit: {one.errno}", certain=False)


def _confined(label: str | None) -> bool:
    return label is not None and "unconfined" not in label and label not in ("kernel", "")


def _of_packet(one: Denied) -> Gate:
    if one.errno == "EACCES":
        says = "a route forbids it (prohibit), or it is a broadcast without SO_BROADCAST"
    else:
        says = "a packet filter on its way out drops it (iptables or nft, OUTPUT)"
    return Gate(name="packet filter", says=says, source=f"sys_exit: {one.errno}", certain=False)
