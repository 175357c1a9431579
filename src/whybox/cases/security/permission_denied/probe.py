"""Permission denied: which gate refused which call, and whether the program minds."""

from collections.abc import Iterator

from whybox.change import (
    AllowSystemCalls,
    Change,
    FileAccess,
    GrantCapabilities,
    MountOption,
    Sysctl,
    Volume,
)
from whybox.kernel import capability, denials, harm
from whybox.kernel.access import W, X
from whybox.kernel.denials import Denied, Window
from whybox.kernel.gate import Gate, gate
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.model import (
    Case,
    Certainty,
    Cure,
    Evidence,
    Finding,
    RuledOut,
    Safety,
    Severity,
    Verdict,
    Watch,
    clear,
    unknown,
)
from whybox.needs import living

Observation = Window

MOST_SHOWN = 4

#: Whoever these belong to, it is not for a container's program to own them.
_SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/proc", "/root", "/sbin", "/sys", "/usr")
_TOPS = ("/", "/home", "/opt", "/run", "/srv", "/tmp", "/var", "/var/lib", "/var/log", "/var/run")

_SENSOR = "raw_syscalls:sys_exit and capability:cap_capable"


def observe(host: Host, target: Target) -> Watch[Observation]:
    """Watch what is refused; look at the files in question at the end."""
    with denials.watch(host, target) as refused:
        yield
        return refused()


def judge(seen: Observation) -> Finding:
    """Found where a refusal is neither a question nor made good."""
    if seen.reason is not None:
        return unknown(f"what is refused is not seen: {seen.reason}")
    trouble = sorted((d for d in seen.seen if harm.harmless(d) is None), key=harm.is_main)
    if trouble:
        return _found(trouble, seen)
    if seen.lost:
        return unknown(f"{seen.lost} calls could not be told: it is refused too often to see all")
    if not seen.seen:
        return clear("Nothing was refused it in this window.", evidence=_watched("nothing"))
    return clear(_mild(seen), evidence=_watched(f"{len(seen.seen)} kinds of refusals"))


def _watched(what: str) -> tuple[Evidence, ...]:
    return (Evidence(_SENSOR, f"{what} with EPERM, EACCES or EROFS"),)


def _mild(seen: Observation) -> str:
    told = "; ".join(
        f"{one.comm}: {call(one)} {one.errno}, {harm.harmless(one)}"
        for one in seen.seen[:MOST_SHOWN]
    )
    more = f" (and {len(seen.seen) - MOST_SHOWN} more)" if len(seen.seen) > MOST_SHOWN else ""
    return f"What was refused does no harm: {told}{more}."


def call(one: Denied) -> str:
    """The call as a sentence names it."""
    if one.port is not None:
        return f"{one.call} to port {one.port}"
    path = one.path or one.said
    return f"{one.call} of {path}" if path else one.call


def _found(trouble: list[Denied], seen: Observation) -> Finding:
    worst = trouble[0]
    its = gate(worst, seen.port_start)
    fatal = harm.ended(worst, harm.SOON) or worst.how in ("trapped", "killed")
    return Finding(
        verdict=Verdict.FOUND,
        certainty=Certainty.CONFIRMED if its.certain else Certainty.LIKELY,
        severity=Severity.CRITICAL if fatal or worst.times > 2 else Severity.WARNING,
        summary=_summary(worst, its, trouble),
        evidence=tuple(_evidence(worst, its, trouble, seen)),
        ruled_out=tuple(_ruled_out(worst, its)),
        cures=tuple(_cures(worst, its)),
    )


def _summary(worst: Denied, its: Gate, trouble: list[Denied]) -> str:
    times = "once" if worst.times == 1 else f"{worst.times} times"
    what = worst.errno or "SIGSYS"
    after = ""
    if harm.ended(worst, harm.SOON):
        after = f"; then it ended with status {worst.status}"
    others = dict.fromkeys(call(one) for one in trouble[1:] if call(one) != call(worst))
    also = f" Refused as well: {', '.join(list(others)[:MOST_SHOWN])}." if others else ""
    who = f"{worst.comm} (pid {worst.pid}, uid {worst.uid})"
    return f"{who} was refused {call(worst)} {times} ({what}): {its.says}{after}.{also}"


def _evidence(
    worst: Denied, its: Gate, trouble: list[Denied], seen: Observation
) -> Iterator[Evidence]:
    yield Evidence(its.source, its.says)
    for one in trouble[:MOST_SHOWN]:
        held = f", CapEff {one.held:016x}"
        yield Evidence(_SENSOR, f"{one.comm}: {call(one)} = {one.errno or 'SIGSYS'}{held}")
    for step in () if worst.way is None else worst.way.steps[-3:]:
        said = f"mode {step.mode & 0o7777:04o}, owner {step.uid}:{step.gid}"
        yield Evidence(f"stat {step.path}", said)
    if seen.untold:
        yield Evidence(_SENSOR, f"{seen.untold} more refusals, of programs that try on and on")


def _ruled_out(worst: Denied, its: Gate) -> Iterator[RuledOut]:
    if its.name != "seccomp":
        yield RuledOut("seccomp", f"{worst.call} entered the kernel (sys_enter was seen)")
    if its.name not in ("capability", "port", "limit") and not its.source.startswith("capability"):
        asked = "none was asked for and refused" if not worst.capabilities else "owner and mode do"
        yield RuledOut("the want of a capability", asked)
    if worst.errno and worst.errno != "EROFS":
        yield RuledOut("a read-only mount", f"that is EROFS, and this is {worst.errno}")
    if its.name not in ("owner or mode", "seccomp") and worst.way is not None:
        yield RuledOut("owner and mode", f"they let uid {worst.uid} along {worst.path}")
    yield RuledOut(
        "a program that asks, or finds another way",
        "its process ended with a failure"
        if harm.ended(worst, harm.SOON)
        else "the same thread did not get it in another way",
    )


def _cures(worst: Denied, its: Gate) -> Iterator[Cure]:
    """The one that is sufficient first."""
    match its.name:
        case "owner or mode" if its.step is not None and its.lacks:
            yield from _of_mode(worst, its)
        case "owner or mode" if its.step is not None:
            yield _cure(
                f"Give {its.step.path} to uid {worst.uid} in the image or on the volume, or have "
                "its owner do it.",
                FileAccess(its.step.path, uid=worst.uid, gid=worst.gid),
            )
        case "port":
            yield _cure(
                f"Let its network namespace give away ports from {worst.port} on, or have it "
                "listen on 1024 or above and publish that as the port (-p 80:8080).",
                Sysctl("net.ipv4.ip_unprivileged_port_start", str(worst.port)),
            )
        case "capability":
            yield from _of_capability(worst)
        case "seccomp":
            yield _cure(
                f"If it really needs {worst.call}, allow that one call: take the engine's default "
                f"profile and add {worst.call} to the names that it allows (whybox trace syscalls "
                "tells which others); unconfined is far more than it asks for.",
                AllowSystemCalls((worst.call,)),
            )
        case "mount option" if worst.mount is not None:
            yield _of_mount(worst, worst.mount.mountpoint, its)
        case _:
            yield Cure(advice=_advice(worst, its), safety=Safety.INSPECT)


def _cure(advice: str, change: Change) -> Cure:
    return Cure(advice=advice, change=change, safety=Safety.MUTATING)


def _of_mode(worst: Denied, its: Gate) -> Iterator[Cure]:
    step, mine = its.step, f"uid {worst.uid} (gid {worst.gid})"
    assert step is not None
    if step.path in _TOPS or step.path.startswith(_SYSTEM):
        yield Cure(
            advice=(
                f"{step.path} is the system's: give the program a directory of its own (a volume, "
                f"or one that the image makes with COPY --chown={worst.uid}:{worst.gid}), or run "
                f"it as the user whom {step.path} belongs to (uid {step.uid})."
            ),
            safety=Safety.INSPECT,
        )
    elif its.lacks == X and step.mode & 0o170000 == 0o040000:
        change = FileAccess(step.path, mode=(step.mode & 0o7777) | 0o001)
        yield _cure(f"Let others pass through {step.path} (o+x), or give it to {mine}.", change)
    elif its.lacks & (W | X) and not step.mode & 0o111:
        change = FileAccess(step.path, mode=(step.mode & 0o7777) | 0o111)
        yield _cure(f"Make {step.path} executable (COPY --chmod=755 in the image).", change)
    else:
        advice = (
            f"Give {step.path} to {mine}: chown in the image (COPY --chown), of a volume on the "
            "host, in Kubernetes with fsGroup; a bind mount keeps the host's owner, and a "
            "directory that Docker makes for it is root's."
        )
        yield _cure(advice, FileAccess(step.path, uid=worst.uid, gid=worst.gid))
    if worst.uid == 0:
        yield _cure(
            "Or give root back the right to pass over owner and mode, which is much.",
            GrantCapabilities(("DAC_OVERRIDE",)),
        )


def _of_capability(worst: Denied) -> Iterator[Cure]:
    names = capability.names(worst.capabilities & ~0b110)
    one = names[-1]
    advice = f"If it really needs to, give it {one} and nothing else (not --privileged)."
    if worst.uid != 0:
        advice += (
            f" It runs as uid {worst.uid}, to whom --cap-add alone gives nothing: the file needs "
            f"it too (setcap cap_{one.lower()}+ep), without no-new-privileges, or the program "
            "runs as root."
        )
    yield _cure(advice, GrantCapabilities((one,)))


def _of_mount(worst: Denied, mountpoint: str, its: Gate) -> Cure:
    path = worst.path or mountpoint
    if its.option == "ro" and mountpoint == "/":
        where = path.rsplit("/", 1)[0] or path
        advice = (
            f"The root file system is read-only on purpose (--read-only): mount a volume or a "
            f"tmpfs where it must write, {where}."
        )
        return _cure(advice, Volume(where))
    wanted = {"ro": "rw", "noexec": "exec", "nodev": "dev", "nosuid": "suid"}[its.option or "ro"]
    advice = f"Mount {mountpoint} with {wanted}, or keep what it needs elsewhere."
    if mountpoint.startswith("/proc"):
        advice = (
            f"{mountpoint} is read-only in containers, whatever capabilities they have: set the "
            "parameter for it (docker run --sysctl, securityContext.sysctls) or on the host."
        )
        return Cure(advice=advice, safety=Safety.INSPECT)
    return _cure(advice, MountOption(mountpoint, wanted))


def _advice(worst: Denied, its: Gate) -> str:
    match its.name:
        case "attribute":
            path = its.step.path if its.step is not None else "the file"
            return f"Take the attribute away where it was set, on the host: chattr -i {path}."
        case "user namespace":
            return (
                "Use ids that its user namespace has (/proc/PID/uid_map), give the files to such "
                "an id from outside, or run it without a user namespace."
            )
        case "device rule":
            return "Give it the device, and this one alone: docker run --device PATH."
        case "limit":
            return "Raise the limit from outside: docker run --ulimit, LimitNOFILE= of its unit."
        case "packet filter":
            return (
                "Look for the rule: nft list ruleset, iptables -S OUTPUT, ip route, in its netns."
            )
        case "file system":
            return "Ask the server: who it takes this user for (root_squash, idmap), and its modes."
        case "security module":
            return (
                "Look for the denial: journalctl -k | grep -i -e apparmor -e avc; then give it a "
                "profile that allows it (--security-opt apparmor=PROFILE, label=type:TYPE)."
            )
        case _:
            return f"Look closer: whybox trace syscalls, and strace -f -e {worst.call}."


CASE = Case(
    title="Permission denied",
    question='Why "permission denied", even as root?',
    question_zh="为什么会 permission denied?",
    lesson="20",
    needs=(living,),
    observation=Observation,
    observe=observe,
    judge=judge,
    outlives=True,
)
