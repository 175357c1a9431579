"""What the files say of a container that waits for CPUs, and what they rule out."""

from whybox.kernel import cpuset
from whybox.kernel.cpucontention import Contention
from whybox.model import Evidence, RuledOut

from .observation import Observation, cores, rivals, stopped_ns


def of_threads(seen: Observation, it: Contention) -> tuple[Evidence, ...]:
    """Who waited, and what quotas did meanwhile."""
    said = []
    for one in seen.threads[:1]:
        waited = f"{one.comm} ran {one.run_ns / 1e9:.2f} s, waited {one.wait_ns / 1e9:.2f} s"
        all_of_them = f"; all {len(seen.threads)} waited {it.wait_ns / 1e9:.2f} s"
        said.append(Evidence(f"/proc/{one.tid}/schedstat", waited + all_of_them))
    for level in seen.levels:
        stopped = f"nr_throttled +{level.throttled}, throttled +{level.stopped_usec} us"
        said.append(Evidence(level.file, stopped))
    if seen.local_file is not None and seen.local_stopped_usec is not None:
        said.append(Evidence(seen.local_file, f"throttled +{seen.local_stopped_usec} us"))
    return tuple(said)


def of_rivals(seen: Observation, it: Contention) -> tuple[Evidence, ...]:
    """Who used the CPUs, and what weighs how much where they meet."""
    known = rivals(seen, it)
    used = [Evidence(r.source, f"{r.name} used {cores(it, r.used_ns)} cores") for r in known[:3]]
    meet = known[0].contest if known else None
    if meet is not None and meet.own is not None:
        used.append(Evidence(meet.own_file, f"weight {meet.own} (1024 is ordinary)"))
        if meet.rival_file:
            used.append(Evidence(meet.rival_file, f"weight {meet.rival}"))
    return tuple(used)


def of_cpus(seen: Observation, it: Contention) -> tuple[Evidence, ...]:
    """How busy each CPU was, and which of them it may use."""
    busy = ", ".join(
        f"cpu{one.cpu} {one.busy_ns / it.elapsed_ns:.0%}"
        + (f" (stolen {one.steal_ns / it.elapsed_ns:.0%})" if one.steal_ns else "")
        for one in seen.cpus[:16]
    )
    allowed = f"Cpus_allowed_list: {cpuset.listed(it.cpus)}"
    first = f"/proc/{seen.threads[0].tid}/status" if seen.threads else "/proc/PID/status"
    return Evidence("/proc/stat", f"busy: {busy}"), Evidence(first, allowed)


def ruled_out(seen: Observation, it: Contention) -> tuple[RuledOut, ...]:
    """The look-alikes."""
    stops = sum(level.throttled for level in seen.levels)
    off = f"{stopped_ns(seen) / 1e9:.2f} s of stops by quotas are taken off each thread's waiting"
    nobody = "no quota here or above stopped it in this window"
    return (
        RuledOut("cpu/throttled", off if stops else nobody),
        RuledOut(
            "its own threads alone",
            f"{it.threads} wanted {len(it.cpus)} CPUs, of which others used "
            f"{cores(it, it.others_used_ns)}",
        ),
    )
