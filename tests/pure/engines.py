"""What an engine says of its containers, and the machine on which they are."""

import json
from pathlib import Path

import pytest

from tests.pure.runtimes_tree import A, B, C, Tree
from whybox.runtimes.resolve import Resolution

SOCKET = "var/run/docker.sock"
LIST = [
    {
        "Id": A,
        "Names": ["/other/alias", "/web"],
        "Image": "nginx:1",
        "Command": "nginx -g 'x'",
        "Created": 5,
        "Ports": [
            {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"PrivatePort": 443, "Type": "tcp"},
        ],
        "Labels": {"unknown": "ignored"},
    },
    {"Id": B, "Names": ["/db"], "Ports": None},
    {"Id": C, "Names": ["/gone"]},
]
STATE = {
    "Status": "exited",
    "Running": False,
    "Pid": 0,
    "ExitCode": 137,
    "OOMKilled": True,
    "StartedAt": "2024-01-02T03:04:05.5Z",
    "FinishedAt": "2024-01-02T03:05:05.5Z",
}


def inspected(id: str, name: str, **state: object) -> dict[str, object]:
    return {
        "Id": id,
        "Name": f"/{name}",
        "Created": "2024-01-02T03:04:05Z",
        "Path": "nginx",
        "Args": ["-g", "a b"],
        "RestartCount": 3,
        "State": STATE | state,
        "Config": {"Image": "nginx:1", "StopSignal": "SIGQUIT"},
        "HostConfig": {"CgroupParent": ""},
        "NetworkSettings": {
            "Ports": {
                "80/tcp": [
                    {"HostIp": "0.0.0.0", "HostPort": "8080"},
                    {"HostIp": "::", "HostPort": "8080"},
                ],
                "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}],
                "443/tcp": None,
            }
        },
    }


EVENTS = "\n".join(
    json.dumps({"Action": action, "Actor": {"ID": A, "Attributes": told}})
    for action, told in [
        ("start", {"image": "nginx:1"}),
        ("kill", {"signal": "15", "name": "web"}),
        ("oom", None),
        ("die", {"exitCode": "137", "execDuration": "60"}),
    ]
)
ENGINE = {
    "/containers/json": json.dumps(LIST),
    f"/containers/{A}/json": json.dumps(inspected(A, "web", Status="running", Pid=7, ExitCode=0)),
    f"/containers/{B}/json": json.dumps(inspected(B, "db", Status="running", Pid=8, ExitCode=0)),
    f"/containers/{C}/json": json.dumps(inspected(C, "gone")),
    "/events": EVENTS,
    "/info": json.dumps({"CgroupDriver": "cgroupfs"}),
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two Docker containers, one of lxc, a systemd unit, a bare group and a bare pid namespace."""
    tree = Tree(tmp_path)
    tree.task(7, f"/docker/{A}", nspid=1)
    tree.task(8, f"/system.slice/docker-{B}.scope", nspid=1)
    tree.task(9, "/lxc.payload.box", nspid=1)
    tree.task(10, "/system.slice/ssh.service")
    tree.task(11, "/mine")
    tree.task(12, "/", nspid=1)
    return tree


def names(found: Resolution) -> list[str]:
    return [target.name for target in found.targets]
