"""Thousands of services that nobody uses, on the host itself: only in a VM."""

import errno
import os
import re
import socket
import struct
import subprocess
from collections.abc import Callable

from whybox.change import HostSysctl
from whybox.kernel.estimation import RUN_ESTIMATION, TABLES
from whybox.kernel.host import Host
from whybox.lab import machine, workload
from whybox.lab.box import Box
from whybox.lab.lab import Breaks, Lab, Scenario
from whybox.model import Finding

#: With two real servers each, so three times as many rates. Measured: 500 take 0.5 ms in a VM with
#: 2 CPUs, 10000 take 13 ms.
MANY, FEW, SERVERS = 6000, 20, 2

# include/uapi/linux/ip_vs.h
_ADD, _FLUSH, _ADD_SERVER = 1154, 1157, 1159
_SERVICE = struct.Struct("=H2x4s2s2xI16sIII")
_SERVER = struct.Struct("=4s2s2xIiII")
_MASQUERADED, _PORT, _ALL_ONES = 0, struct.pack(">H", 80), 0xFFFFFFFF


def add(count: int) -> None:
    """Add so many services of TCP, each with its real servers, all at addresses that nobody has."""
    with _control() as end:
        for number in range(count):
            service = _service(number)
            end.setsockopt(socket.IPPROTO_IP, _ADD, service)
            for server in range(SERVERS):
                address = struct.pack(">I", (203 << 24) + (number << 4) + server + 1)
                packed = _SERVER.pack(address, _PORT, _MASQUERADED, 1, 0, 0)
                end.setsockopt(socket.IPPROTO_IP, _ADD_SERVER, service + packed)


def clear() -> None:
    """Remove all services: there were none of others in a VM."""
    with _control() as end:
        end.setsockopt(socket.IPPROTO_IP, _FLUSH, b"")


def _service(number: int) -> bytes:
    address = struct.pack(">I", (198 << 24) + (18 << 16) + number)
    tcp = socket.IPPROTO_TCP
    return _SERVICE.pack(tcp, address, _PORT, 0, b"rr", 0, 0, _ALL_ONES)


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def ipvs(host: Host) -> str | None:
    """Whether there is IPVS, whose module is loaded if it can be, and the timer."""
    if not any(map(host.exists, TABLES)):
        try:
            subprocess.run(["modprobe", "-q", "ip_vs"], check=False, timeout=30)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    if not any(map(os.path.exists, TABLES)):
        return "this kernel has no IPVS"
    if _has_threads():
        return "this kernel works out the rates of IPVS in threads"
    return None if os.path.exists(RUN_ESTIMATION) else "this kernel cannot switch estimation off"


def _has_threads() -> bool:
    return os.path.exists("/proc/sys/net/ipv4/vs/est_cpulist")


def with_services(
    count: int,
    program: Callable[[], object] = workload.idle,
    *,
    estimated: bool = True,
) -> Scenario:
    """A box on a host with so many services."""

    def scenario(box: Box) -> None:
        if not estimated:
            machine.set_sysctl(HostSysctl("net.ipv4.vs.run_estimation", "0"), box.closing)
        box.closing.callback(clear)
        clear()
        add(count)
        box.start(program)

    return scenario


def numbers(finding: Finding) -> str | None:
    """The services are the lab's own."""
    said = f"{MANY} services with {MANY * SERVERS} real servers"
    if said not in finding.summary:
        return f"not {said!r} in {finding.summary!r}"
    told = " ".join(evidence.says for evidence in finding.evidence)
    after = re.search(r"one after the other: ([\d.]+) s", told)
    if after is None or 1.7 <= float(after[1]) <= 2.4:
        return None
    return f"one after the other in {after[1]} s"


LAB = Lab(
    healthy=with_services(FEW),
    reproduce=with_services(MANY),
    look_alikes={
        "many services whose rates nobody works out": with_services(MANY, estimated=False),
        "a program that is busy every 2 s": with_services(
            FEW, workload.bursts(tasks=1, cpu_ms=50, every_ms=2000)
        ),
        "no services": with_services(0),
    },
    numbers=numbers,
    breaks=Breaks.KERNEL,
    needs=(ipvs,),
    window_seconds=5.0,
)
