"""``whybox ps``: all containers, with one glance of their health."""

import argparse
import sys

from msgspec import Struct

from whybox.cli import OK, choices
from whybox.diagnose import diagnose
from whybox.kernel import cpu, memory
from whybox.kernel.host import Host
from whybox.kernel.target import Target, processes
from whybox.model import Diagnosis, Verdict


class Row(Struct, frozen=True, kw_only=True):
    """One container at a glance."""

    name: str
    runtime: str
    id: str
    image: str | None
    up: str
    processes: int | None
    cpu_cores: float | None
    """Used over the window, in CPUs."""
    memory_bytes: int | None
    memory_limit_bytes: int | None
    """The smallest limit on the way to the root."""
    found: tuple[str, ...]
    unknown: tuple[str, ...]


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    choices.add_window(parser, "1s")
    choices.add_output(parser, "text", "json")


def run(arguments: argparse.Namespace) -> int:
    """Look at all of them in one window."""
    host = Host(window_seconds=arguments.window)
    targets = choices.resolved(host, (), everything=True)
    used = {target.id: _used_usec(host, target) for target in targets}
    began = host.monotonic_ns()
    report = diagnose(host, targets, choices.chosen(None, ()))
    elapsed = host.monotonic_ns() - began
    rows = [_row(host, one, used[one.target.id], elapsed) for one in report.targets]
    _print(rows, arguments.output)
    return OK


def _used_usec(host: Host, target: Target) -> int | None:
    group = target.group(host, "cpuacct")
    return None if group is None or group.path == "/" else cpu.usage_usec(host, group)


def _row(host: Host, seen: Diagnosis, used: int | None, elapsed_ns: int) -> Row:
    from whybox.views.text import life

    target = seen.target
    now = _used_usec(host, target)
    cores = None if used is None or now is None else (now - used) * 1000 / elapsed_ns
    current, limit = _memory(host, target)
    return Row(
        name=target.name,
        runtime=target.runtime,
        id=target.short_id,
        image=target.image,
        up=life(target),
        processes=len(processes(host, target)) or None,
        cpu_cores=None if cores is None else round(cores, 3),
        memory_bytes=current,
        memory_limit_bytes=limit,
        found=tuple(f"{f.case} ({f.severity})" for f in seen.found()),
        unknown=tuple(f.case for f in seen.findings if f.verdict is Verdict.UNKNOWN),
    )


def _memory(host: Host, target: Target) -> tuple[int | None, int | None]:
    group = target.group(host, "memory")
    if group is None or group.path == "/":
        return None, None
    levels = [memory.memory(host, one) for one in group.lineage()]
    limits = [level.limit_bytes for level in levels if level.limit_bytes is not None]
    return levels[0].current_bytes, min(limits, default=None)


def _print(rows: list[Row], output: str) -> None:
    if output == "json":
        from whybox.views import json

        print(json.data(rows))
        return
    from whybox.views import table

    table.show(
        ("name", "runtime", "id", "image", "life", "procs", "cpu", "memory", "health"),
        [_cells(row) for row in rows],
        colour=choices.colour(sys.stdout.isatty()),
    )


def _cells(row: Row) -> tuple[str, ...]:
    worst = [name for name in row.found if "(info)" not in name]
    health = f"✗ {', '.join(worst)}" if worst else "✓"
    return (
        row.name,
        row.runtime,
        row.id,
        row.image or "",
        row.up,
        "" if row.processes is None else str(row.processes),
        "" if row.cpu_cores is None else f"{row.cpu_cores:.2f}",
        _of(row.memory_bytes, row.memory_limit_bytes),
        health + (f"  ? {len(row.unknown)} unknown" if row.unknown else ""),
    )


def _of(used: int | None, limit: int | None) -> str:
    if used is None:
        return ""
    return f"{used / 2**20:.0f} MiB" + ("" if limit is None else f" of {limit / 2**20:.0f}")
