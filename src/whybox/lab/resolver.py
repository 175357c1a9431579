"""Whom a box asks for names: its ``/etc/resolv.conf``, which is its own layer's."""

import os
from collections.abc import Iterable
from contextlib import suppress


def _path(pid: int) -> str:
    return f"/proc/{pid}/root/etc/resolv.conf"


def write(pid: int, text: str) -> None:
    """Give the box whose PID 1 that is this file; what the host has there may be a link."""
    with suppress(FileNotFoundError):
        os.unlink(_path(pid))
    with open(_path(pid), "x", encoding="ascii") as file:
        file.write(text)


def use(pid: int, nameservers: Iterable[str]) -> bool:
    """Name these servers instead of those; the other lines stay."""
    with open(_path(pid), encoding="ascii") as file:
        kept = [line for line in file if not line.startswith("nameserver")]
    with open(_path(pid), "w", encoding="ascii") as file:
        file.writelines([*(f"nameserver {one}\n" for one in nameservers), *kept])
    return True
