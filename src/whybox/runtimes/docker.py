"""What a Docker engine knows of its containers: names, images, published ports, how they ended.

Docker Engine API, /containers/json, /containers/ID/json, /events, /info; podman speaks it too.
Paths without a version mean the newest that the engine has. Engines leave out what they do not
know, so every field has a default.
"""

import errno
import os
import re
import shlex
import time
from collections.abc import Mapping
from typing import ClassVar, TypeVar

from msgspec import DecodeError, Struct, field, json, structs

from whybox.kernel.cgroup import hierarchies
from whybox.kernel.host import Host
from whybox.kernel.namespace import host_namespaces
from whybox.kernel.target import Exit, Port, Target
from whybox.runtimes import unixhttp
from whybox.runtimes.timestamp import nanoseconds

_T = TypeVar("_T")

#: What Docker and podman accept as a name; anything else is not worth asking for.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_EVENTS_AT_MOST = 256
#: Without what health checks and ``exec`` write all the time. ``died`` is podman's word.
_EVENTS = (
    *("start", "kill", "oom", "die", "died", "stop", "restart"),
    *("pause", "unpause", "update", "rename"),
)
#: What is worth telling of an event; podman names an exit code of 0 with every one.
_TOLD = {"kill": "signal", "die": "exitCode"}


class Binding(Struct, frozen=True, rename="pascal"):
    """Where the host listens for a port of a container."""

    host_ip: str = ""
    host_port: str = ""


class State(Struct, frozen=True, rename="pascal"):
    """How it is, or how it ended."""

    status: str = ""
    pid: int = 0
    exit_code: int | None = None
    oom_killed: bool | None = field(default=None, name="OOMKilled")
    started_at: str = ""
    finished_at: str = ""


class Config(Struct, frozen=True, rename="pascal"):
    """What was asked for."""

    image: str = ""
    stop_signal: str | None = None
    stop_timeout: int | None = None


class HostConfig(Struct, frozen=True, rename="pascal"):
    """What was asked of the machine."""

    cgroup_parent: str = ""


class NetworkSettings(Struct, frozen=True, rename="pascal"):
    """Its network, as the engine made it."""

    ports: dict[str, tuple[Binding, ...] | None] | None = None


class Inspected(Struct, frozen=True, rename="pascal"):
    """One container, of ``/containers/ID/json``."""

    id: str
    name: str = ""
    created: str = ""
    path: str = ""
    args: tuple[str, ...] | None = None
    restart_count: int = 0
    state: State = State()
    config: Config = Config()
    host_config: HostConfig = HostConfig()
    network_settings: NetworkSettings | None = None


class ListedPort(Struct, frozen=True, rename="pascal"):
    """A port in a list; ``PublicPort`` only where the host listens."""

    private_port: int
    public_port: int | None = None
    type: str = "tcp"
    ip: str | None = field(default=None, name="IP")


class Listed(Struct, frozen=True, rename="pascal"):
    """One container, of ``/containers/json``."""

    id: str
    names: tuple[str, ...] | None = None
    image: str | None = None
    command: str | None = None
    created: int | None = None
    ports: tuple[ListedPort, ...] | None = None

    @property
    def name(self) -> str:
        """Its own name; those with a slash inside are other containers' links to it."""
        names = [name.removeprefix("/") for name in self.names or ()]
        return next((name for name in names if "/" not in name), self.id[:12])


class Actor(Struct, frozen=True, rename="pascal"):
    """Whom an event befell."""

    attributes: dict[str, str] | None = None


class Event(Struct, frozen=True, rename="pascal"):
    """One event, of ``/events``."""

    action: str = ""
    actor: Actor = Actor()
    time_nano: int | None = field(default=None, name="timeNano")

    def __str__(self) -> str:
        told = self.actor.attributes or {}
        action = "die" if self.action == "died" else self.action
        key = _TOLD.get(action, "")
        value = told.get(key) or (told.get("containerExitCode") if action == "die" else None)
        return action if value is None else f"{action} {key}={value}"


class Info(Struct, frozen=True, rename="pascal"):
    """The engine itself, of ``/info``."""

    cgroup_driver: str = ""


class Docker:
    """A Docker engine. Whatever it is asked takes at most ``seconds``, or raises OSError."""

    runtime: ClassVar[str] = "docker"
    socket: ClassVar[str] = "/var/run/docker.sock"
    variable: ClassVar[str] = "DOCKER_HOST"
    #: How a group is named: by the cgroupfs driver, under its parent; by systemd, as a scope.
    parent: ClassVar[str] = "/docker"
    slice: ClassVar[str] = "system.slice"
    prefix: ClassVar[tuple[str, str]] = ("", "docker-")

    def __init__(self, host: Host, socket: str | None = None, *, seconds: float = 1.0) -> None:
        self.host = host
        self.seconds = seconds
        named = os.environ.get(self.variable, "") if host.live else ""
        # An engine of another machine (tcp://, ssh://) has nothing to say of this kernel.
        here = named.removeprefix("unix://") if named.startswith("unix://") else None
        self.path = socket or here or host.path(self.socket)

    @property
    def present(self) -> bool:
        """Whether there is anything to ask; it may hang all the same."""
        return os.path.exists(self.path)

    def inspect(self, name_or_id: str) -> Inspected | None:
        """One container by its name or the beginning of its id, if the engine has it."""
        if not _NAME.fullmatch(name_or_id):
            return None
        body = self._asked(f"/containers/{name_or_id}/json")
        return None if body is None else self._read(body, Inspected)

    def list(self, all: bool = True) -> tuple[Listed, ...]:
        """Every container; without ``all``, the running ones."""
        body = self._asked(f"/containers/json?all={int(all)}")
        return () if body is None else self._read(body, tuple[Listed, ...])

    def events(self, id: str, since: int) -> tuple[Event, ...]:
        """What befell a container from then (ns since 1970) until now, the latest 256 of it.

        Docker remembers the last 256 events of all its containers, and none of before its start.
        """
        wanted = {"container": (id,), "event": _EVENTS, "type": ("container",)}
        filters = unixhttp.encoded(json.encode(wanted).decode())
        span = f"since={_decimal(since)}&{self.until_now()}"
        body = self._asked(f"/events?{span}&filters={filters}") or b""
        lines = body.splitlines()[-_EVENTS_AT_MOST:]
        return tuple(self._read(line, Event) for line in lines if line)

    def until_now(self) -> str:
        """What makes the engine say what it remembers, and end."""
        return f"until={_decimal(time.time_ns())}"

    def describe(self, target: Target) -> Target:
        """The same target with what the engine knows of it; unchanged where it knows nothing."""
        known = self.inspect(target.id)
        return target if known is None else self._described(target, known)

    def dead(self, name_or_id: str) -> Target | None:
        """What is left of a container without a process; ``None`` if it runs or is not known."""
        known = self.inspect(name_or_id)
        if known is None or known.state.pid:
            return None
        left = Target(
            id=known.id,
            name=known.id,
            runtime=self.runtime,
            init=None,
            cgroups=self._cgroups(known),
            host_namespaces=host_namespaces(self.host),
        )
        return self._described(left, known)

    def command(self, known: Inspected) -> tuple[str, ...]:
        """The program and its arguments."""
        return (known.path, *(known.args or ())) if known.path else ()

    def _described(self, target: Target, known: Inspected) -> Target:
        settings = known.network_settings or NetworkSettings()
        return structs.replace(
            target,
            name=known.name.removeprefix("/") or target.name,
            image=known.config.image or None,
            command=shlex.join(self.command(known)) or target.command,
            stop_signal=known.config.stop_signal or None,
            stop_seconds=known.config.stop_timeout,
            created_at_ns=nanoseconds(known.created),
            ports=ports(settings.ports or {}),
            exit=self._exit(known),
        )

    def _exit(self, known: Inspected) -> Exit:
        state, started = known.state, nanoseconds(known.state.started_at)
        events = () if started is None else self.events(known.id, started)
        # The engine's 0 of a container that runs or never ran is no exit code.
        ended = not state.pid and (started is not None or bool(state.exit_code))
        return Exit(
            source=f"{self.runtime} inspect {known.id[:12]} State",
            status=state.status,
            exit_code=state.exit_code if ended else None,
            oom_killed=state.oom_killed,
            started_at_ns=started,
            finished_at_ns=nanoseconds(state.finished_at),
            restarts=known.restart_count,
            events=tuple(str(event) for event in events),
            events_at_ns=tuple(at for event in events if (at := event.time_nano) is not None),
        )

    def _cgroups(self, known: Inspected) -> Mapping[str, str]:
        path = self._group(known)
        trees = hierarchies(self.host)
        # In a container that has the socket, a mount shows less than the whole tree.
        return {name: tree.root.rstrip("/") + path for tree in trees for name in tree.controllers}

    def _group(self, known: Inspected) -> str:
        parent, (plain, scope) = known.host_config.cgroup_parent, self.prefix
        if parent.endswith(".slice") or (not parent and self._driver() == "systemd"):
            return f"{slice_path(parent or self.slice)}/{scope}{known.id}.scope"
        return f"/{(parent or self.parent).strip('/')}/{plain}{known.id}"

    def _driver(self) -> str:
        body = self._asked("/info")
        return "" if body is None else self._read(body, Info).cgroup_driver

    def _asked(self, resource: str) -> bytes | None:
        answer = unixhttp.get(self.path, resource, seconds=self.seconds)
        if answer.status == 404:
            return None
        if answer.status != 200:
            said = answer.body[:200].decode("utf-8", "backslashreplace").strip()
            raise OSError(errno.EPROTO, f"answered {answer.status}: {said}", self.path)
        return answer.body

    def _read(self, body: bytes, type: type[_T]) -> _T:
        try:
            return json.decode(body, type=type)
        except DecodeError as error:
            raise OSError(errno.EPROTO, f"said what no engine says: {error}", self.path) from None


def named(target: Target, known: Listed) -> Target:
    """The target with what a list says of it: no exit record."""
    return structs.replace(
        target,
        name=known.name,
        image=known.image or None,
        command=known.command or target.command,
        created_at_ns=None if known.created is None else known.created * 10**9,
        ports=tuple(
            Port(port=p.private_port, protocol=p.type, host_address=p.ip, host_port=p.public_port)
            for p in known.ports or ()
            if p.public_port
        ),
    )


def ports(said: Mapping[str, tuple[Binding, ...] | None]) -> tuple[Port, ...]:
    """The published ports; one that is only exposed (``EXPOSE``) is a note of its author's."""
    found = []
    for name, bindings in said.items():
        number, _, protocol = name.partition("/")
        for binding in bindings or ():
            if number.isdecimal():
                found.append(_port(int(number), protocol, binding))
    return tuple(found)


def _port(number: int, protocol: str, binding: Binding) -> Port:
    return Port(
        port=number,
        protocol=protocol or "tcp",
        host_address=binding.host_ip or None,
        host_port=int(binding.host_port) if binding.host_port.isdecimal() else None,
    )


def slice_path(name: str) -> str:
    """Where systemd puts a slice (systemd.slice(5)).

    >>> slice_path("a-b.slice")
    '/a.slice/a-b.slice'
    """
    words = name.rsplit("/", 1)[-1].removesuffix(".slice").strip("-").split("-")
    if words == [""]:
        return ""  # -.slice is the root
    return "".join(f"/{'-'.join(words[: end + 1])}.slice" for end in range(len(words)))


def _decimal(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09d}"
