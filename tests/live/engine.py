"""A real Docker engine which the tests start themselves, and take away without a trace.

It shares nothing with a Docker of the machine: its daemon, containerd, directories and network
(`docker0`, packet filter rules) are its own.
"""

import itertools
import json
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from msgspec import Struct

from tests.live import footprint

NEEDED = ("dockerd", "docker", "containerd", "runc", "iptables", "ip", "setpriv")
# Long, for a kernel in software emulation: there a daemon needs 30 s to start.
PATIENCE_SECONDS = 120.0


def missing() -> str | None:
    """Why no engine can be started here."""
    absent = [name for name in NEEDED if not shutil.which(name)]
    lack = f"no {', '.join(absent)}: run python -m tests.live.packages"
    return lack if absent else None


class EngineError(Exception):
    """The daemon or a docker command failed; the message is what it said."""


class Container(Struct, frozen=True, kw_only=True):
    id: str
    name: str
    engine: "Engine"

    @property
    def pid(self) -> int:
        """The host's pid of its first process; asked anew, for a restart changes it."""
        pid = self.engine.inspect(self)["State"]["Pid"]
        if not pid:
            raise EngineError(f"container {self.name} is not running")
        return int(pid)


class Engine:
    """`with Engine() as engine:` is a running dockerd; leaving it removes every container."""

    def __init__(self) -> None:
        self.started: list[Container] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(footprint.restored())
            self.directory = stack.enter_context(footprint.directory())
            stack.enter_context(footprint.network())
            stack.enter_context(self._daemon())
            stack.callback(self._empty)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def host(self) -> str:
        """What DOCKER_HOST says to reach this engine."""
        return f"unix://{self.directory}/sock"

    def run(
        self, image: str, *command: str, name: str | None = None, options: tuple[str, ...] = ()
    ) -> Container:
        """`docker run -d`."""
        name = name or f"live-{next(self._numbers)}"
        id = self.docker("run", "-d", "--name", name, *options, image, *command).strip()
        container = Container(id=id, name=name, engine=self)
        self.started.append(container)
        return container

    def exec(
        self, container: Container, *command: str, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """`docker exec`; how it ended is the caller's to judge."""
        return self._call("exec", *options, container.id, *command)

    def rm(self, *containers: Container) -> None:
        """`docker rm -f`, of containers which may be gone already."""
        self._call("rm", "-f", "-v", *(container.id for container in containers))

    def update(self, container: Container, *options: str) -> None:
        """`docker update`, e.g. with "--cpus", "0.9"."""
        self.docker("update", *options, container.id)

    def inspect(self, container: Container) -> dict[str, Any]:
        """What `docker inspect` says of it."""
        (said,) = json.loads(self.docker("inspect", container.id))
        return dict(said)

    def logs(self, container: Container) -> str:
        """What it wrote to its standard output."""
        return self.docker("logs", container.id)

    def wait_exit(self, container: Container, seconds: float = 30.0) -> int:
        """Its exit status, once it has one."""
        return int(self.docker("wait", container.id, seconds=seconds))

    def docker(self, *arguments: str, seconds: float = PATIENCE_SECONDS) -> str:
        """The standard output of any docker command, which must succeed."""
        done = self._call(*arguments, seconds=seconds)
        if done.returncode:
            said = f"{shlex.join(done.args)}: {done.returncode}: {done.stderr.strip()}"
            raise EngineError(f"DOCKER_HOST={self.host} {said}")
        return done.stdout

    def _call(
        self, *arguments: str, seconds: float = PATIENCE_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        # Its own DOCKER_CONFIG: no context, proxy or plugin of the user takes part.
        environment = dict(os.environ, DOCKER_HOST=self.host, DOCKER_CONFIG=str(self.directory))
        command = ["docker", *arguments]
        try:
            return subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="backslashreplace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as late:
            raise EngineError(f"{shlex.join(command)}: not done in {seconds:g} s") from late

    def _empty(self) -> None:
        ids = self.docker("ps", "-aq").split()
        self._call("rm", "-f", "-v", *ids)

    @contextmanager
    def _daemon(self) -> Iterator[None]:
        log = self.directory / "log"
        with log.open("wb") as output:
            # A test run which is killed takes its daemon along; Ctrl-C is for the tests alone.
            daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            if not footprint.until(lambda: self._answers(daemon), PATIENCE_SECONDS):
                raise EngineError("dockerd does not answer")
            yield
        except EngineError as error:
            error.add_note(log.read_text(errors="backslashreplace")[-4000:])
            raise
        finally:
            _end(daemon)

    def _command(self) -> tuple[str, ...]:
        place = self.directory
        # An empty configuration, so that the machine's own (/etc/docker/daemon.json) is not read.
        (place / "daemon.json").write_text("{}")
        return (
            *("dockerd", "--config-file", f"{place}/daemon.json", "--host", self.host),
            *("--data-root", f"{place}/data", "--exec-root", f"{place}/exec"),
            *("--pidfile", f"{place}/pid", "--storage-driver", "overlay2"),
        )

    def _answers(self, daemon: subprocess.Popen[bytes]) -> bool:
        if daemon.poll() is not None:
            raise EngineError(f"dockerd ended with {daemon.returncode}")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            try:
                client.connect(f"{self.directory}/sock")
                client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in client.recv(64)
            except OSError:
                return False


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
