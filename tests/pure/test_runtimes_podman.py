"""Podman, where it says the same as Docker in other words."""

import json

import pytest

from tests.pure.engines import ENGINE, SOCKET, inspected, tree
from tests.pure.runtimes_tree import C, Tree, replies, server
from whybox.runtimes.resolve import resolve

__all__ = ["tree"]  # the fixture


def test_podman_behind_dockers_socket_is_one_engine(tree: Tree) -> None:
    podman = tree.root / "run/podman/podman.sock"
    (tree.root / "var/run").mkdir(parents=True)
    (tree.root / SOCKET).symlink_to(podman)
    with server(podman, replies(ENGINE)) as asked:
        (gone,) = resolve(tree.host, ["gone"]).targets
    assert (gone.runtime, gone.cgroups) == ("podman", {"": f"/libpod_parent/libpod-{C}"})
    assert sum(each.startswith("/containers/json") for each in asked) == 1


@pytest.mark.parametrize(
    ("action", "told", "expected"),
    [
        ("died", {"containerExitCode": "1"}, "die exitCode=1"),
        ("die", {"containerExitCode": "1", "exitCode": "1"}, "die exitCode=1"),
        ("start", {"containerExitCode": "0"}, "start"),
        ("kill", {"containerExitCode": "0"}, "kill"),
    ],
)
def test_podmans_events_are_said_in_dockers_words(
    tree: Tree, action: str, told: dict[str, str], expected: str
) -> None:
    said = {"Action": action, "Actor": {"Attributes": told}}
    podman = tree.root / "run/podman/podman.sock"
    with server(podman, replies(ENGINE | {"/events": json.dumps(said)})):
        (gone,) = resolve(tree.host, ["podman://gone"]).targets
    assert gone.exit is not None
    assert gone.exit.events == (expected,)


def test_podman_repeats_a_program_without_arguments(tree: Tree) -> None:
    said = json.dumps(inspected(C, "gone") | {"Path": "/bin/top", "Args": ["/bin/top"]})
    podman = tree.root / "run/podman/podman.sock"
    with server(podman, replies(ENGINE | {f"/containers/{C}/json": said})):
        assert resolve(tree.host, ["gone"]).targets[0].command == "/bin/top"
