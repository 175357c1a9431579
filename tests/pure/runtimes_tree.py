"""A machine written as files, and an engine that is a socket in it."""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from whybox.kernel.host import Host

V2 = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "\n".join(
    f"{40 + n} 20 0:{30 + n} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{options}"
    for n, (name, options) in enumerate(
        {"cpu": "cpu", "memory": "memory", "pids": "pids", "systemd": "name=systemd"}.items()
    )
)
A, B, C = "4f1c" + "a" * 60, "4f77" + "b" * 60, "9e00" + "c" * 60


class Tree:
    """Files below one directory, and the ``Host`` that reads them."""

    def __init__(self, root: Path, mountinfo: str = V2) -> None:
        self.root = root
        self.mountpoints = [line.split()[4] for line in mountinfo.splitlines()]
        self.write("/proc/100/mountinfo", mountinfo + "\n")
        (root / "proc/self").symlink_to("100")
        self.task(2, "/", comm="kthreadd", flags=0x00200000)
        self.task(100, "/", comm="whybox")

    @property
    def host(self) -> Host:
        return Host(str(self.root))

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def task(
        self,
        pid: int,
        path: str,
        *,
        comm: str = "app",
        nspid: int | None = None,
        flags: int = 0,
        ppid: int = 1,
    ) -> None:
        """A process in that group; with its own pid namespace where ``nspid`` is given."""
        zeros = " ".join("0" * 8)
        self.write(
            f"/proc/{pid}/stat",
            f"{pid} ({comm}) S {ppid} 1 1 0 -1 {flags} {zeros} 0 0 20 0 1 0 {pid} 0 0",
        )
        inside = "" if nspid is None else f"\t{nspid}"
        ids = "\n".join(f"{k}:\t0\t0\t0\t0" for k in ("Uid", "Gid"))
        masks = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
        caps = ("CapInh", "CapPrm", "CapEff", "CapBnd")
        bits = "\n".join(f"{k}:\t0" for k in (*masks, *caps))
        self.write(
            f"/proc/{pid}/status",
            f"Name:\t{comm}\nState:\tS (sleeping)\nTgid:\t{pid}\nPPid:\t{ppid}\n{ids}\n"
            f"NSpid:\t{pid}{inside}\nThreads:\t1\n{bits}\n",
        )
        self._namespace(pid, 0xEFFFFFFC if nspid is None else 4026540000 + pid)
        self._join(pid, path)

    def _namespace(self, pid: int, inode: int) -> None:
        directory = self.root / f"proc/{pid}/ns"
        directory.mkdir(exist_ok=True)
        (directory / "pid").symlink_to(f"pid:[{inode}]")

    def _join(self, pid: int, path: str) -> None:
        one = self.mountpoints == ["/sys/fs/cgroup"]
        names = [""] if one else [m.rpartition("/")[2] for m in self.mountpoints]
        keys = ["name=systemd" if name == "systemd" else name for name in names]
        self.write(f"/proc/{pid}/cgroup", "".join(f"1:{k}:{path}\n" for k in keys))
        for mountpoint in self.mountpoints:
            file = self.root / f"{mountpoint}{path}".strip("/") / "cgroup.procs"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as procs:
                procs.write(f"{pid}\n")


Reply = Callable[[str], bytes | None]


def answer(body: str, status: str = "200 OK") -> bytes:
    """A reply such as an engine gives to HTTP/1.0."""
    return f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{body}".encode()


def replies(known: Mapping[str, str]) -> Reply:
    """Answers by resource, without the query; anything else is not found."""

    def reply(resource: str) -> bytes:
        body = known.get(resource.partition("?")[0])
        return answer("{}", "404 Not Found") if body is None else answer(body)

    return reply


@contextmanager
def server(path: Path, reply: Reply) -> Iterator[list[str]]:
    """An engine at ``path``; yields what it was asked. A reply of ``None`` hangs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    asked: list[str] = []
    hanging: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        with _inside(path.parent):
            listener.bind(path.name)
        listener.listen()

        def serve() -> None:
            while True:
                client, _ = listener.accept()
                resource = client.recv(65536).decode().split(" ")[1]
                if resource == "/end":
                    client.close()
                    return
                asked.append(resource)
                said = reply(resource)
                if said is None:
                    hanging.append(client)
                    continue
                client.sendall(said)
                client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            with socket.socket(socket.AF_UNIX) as last, _inside(path.parent):
                last.connect(path.name)
                last.sendall(b"GET /end HTTP/1.0\r\n\r\n")
            thread.join()
            for client in hanging:
                client.close()


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    """A socket's whole path may be 107 bytes; pytest's directories are long."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
