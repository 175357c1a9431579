"""Words to targets, on machines written as files, with engines that answer, hang or are gone."""

import json
import time
from pathlib import Path

import pytest

from tests.pure.engines import ENGINE, LIST, SOCKET, inspected, names, tree
from tests.pure.runtimes_tree import V1, A, B, C, Tree, replies, server
from whybox.kernel.host import Host
from whybox.kernel.target import Port
from whybox.runtimes.docker import Docker
from whybox.runtimes.resolve import TargetError, everything, resolve

__all__ = ["tree"]  # the fixture


def test_a_name_is_the_engines(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(ENGINE)):
        found = resolve(tree.host, ["web"])
    (web,) = found.targets
    assert (web.id, web.image, web.stop_signal) == (A, "nginx:1", "SIGQUIT")
    assert web.init is not None
    assert web.init.pid == 7
    assert web.command == "nginx -g 'a b'"
    assert web.created_at_ns == 1704164645 * 10**9
    assert found.notes == ()


def test_published_ports_are_kept_and_exposed_ones_are_not(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(ENGINE)):
        (web,) = resolve(tree.host, ["web"]).targets
    assert web.ports == (
        Port(port=80, host_address="0.0.0.0", host_port=8080),
        Port(port=80, host_address="::", host_port=8080),
        Port(port=53, protocol="udp", host_address="127.0.0.1", host_port=53),
    )


def test_a_living_container_has_no_exit_code_yet(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(ENGINE)):
        (web,) = resolve(tree.host, ["web"]).targets
    assert web.exit is not None
    assert (web.exit.status, web.exit.exit_code, web.exit.restarts) == ("running", None, 3)


def test_a_dead_container_is_a_target_with_its_exit_record(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(ENGINE)) as asked:
        (gone,) = resolve(tree.host, ["gone"]).targets
    assert not gone.alive
    assert gone.cgroups == {"": f"/docker/{C}"}
    assert gone.exit is not None
    assert gone.exit.source == f"docker inspect {C[:12]} State"
    assert (gone.exit.exit_code, gone.exit.oom_killed) == (137, True)
    assert gone.exit.started_at_ns == 1704164645_500000000
    assert gone.exit.events == ("start", "kill signal=15", "oom", "die exitCode=137")
    (events,) = [each for each in asked if each.startswith("/events")]
    assert "since=1704164645.500000000&until=" in events


def test_when_each_event_was_and_how_long_a_stop_takes_are_told(tree: Tree) -> None:
    said = inspected(C, "gone") | {"Config": {"StopTimeout": 3}}
    happened = [
        {"Action": action, "Actor": {"Attributes": {"signal": signal}}, "timeNano": at}
        for action, signal, at in (("kill", "15", 1_000), ("kill", "9", 4_000))
    ]
    answers = {
        f"/containers/{C}/json": json.dumps(said),
        "/events": "\n".join(json.dumps(event) for event in happened),
    }
    with server(tree.root / SOCKET, replies(ENGINE | answers)):
        (gone,) = resolve(tree.host, ["gone"]).targets
    assert gone.exit is not None
    assert gone.exit.events_at_ns == (1_000, 4_000)
    assert gone.stop_seconds == 3


def test_a_container_that_never_ran_has_no_exit_code(tree: Tree) -> None:
    zero = "0001-01-01T00:00:00Z"
    said = inspected(C, "gone", Status="created", ExitCode=0, StartedAt=zero, FinishedAt=zero)
    with server(tree.root / SOCKET, replies(ENGINE | {f"/containers/{C}/json": json.dumps(said)})):
        (gone,) = resolve(tree.host, ["gone"]).targets
    assert gone.exit is not None
    assert (gone.exit.exit_code, gone.exit.finished_at_ns, gone.exit.events) == (None, None, ())


@pytest.mark.parametrize(
    ("parent", "driver", "expected"),
    [
        ("", "cgroupfs", f"/docker/{C}"),
        ("/pods", "cgroupfs", f"/pods/{C}"),
        ("", "systemd", f"/system.slice/docker-{C}.scope"),
        ("a-b.slice", "systemd", f"/a.slice/a-b.slice/docker-{C}.scope"),
    ],
)
def test_the_groups_of_the_dead_follow_the_driver_in_every_tree(
    tmp_path: Path, parent: str, driver: str, expected: str
) -> None:
    tree = Tree(tmp_path, V1)
    said = inspected(C, "gone") | {"HostConfig": {"CgroupParent": parent}}
    known = {f"/containers/{C}/json": json.dumps(said)}
    known |= {"/info": json.dumps({"CgroupDriver": driver}), "/events": ""}
    with server(tree.root / SOCKET, replies(known)):
        dead = Docker(tree.host).dead(C)
    assert dead is not None
    assert dead.cgroups == dict.fromkeys(("cpu", "memory", "pids", "name=systemd"), expected)


def test_who_runs_but_cannot_be_seen_is_not_called_dead(tree: Tree) -> None:
    said = json.dumps(inspected(C, "gone", Status="running", Pid=4711))
    with (
        server(tree.root / SOCKET, replies(ENGINE | {f"/containers/{C}/json": said})),
        pytest.raises(TargetError, match="can be seen from here"),
    ):
        resolve(tree.host, ["gone"])


def test_a_whole_id_needs_no_engine(tree: Tree) -> None:
    found = resolve(tree.host, [A])
    assert [target.id for target in found.targets] == [A]
    assert found.notes == (
        f"docker has no socket at {tree.root}/{SOCKET}: names, images and exit records "
        "may be missing",
    )


def test_a_hanging_engine_costs_one_deadline_and_a_note(tree: Tree) -> None:
    with server(tree.root / SOCKET, lambda _: None) as asked:
        began = time.monotonic()
        found = resolve(tree.host, [A, B, "4f1c", "box"])
        assert time.monotonic() - began < 5
    assert [target.id for target in found.targets] == [A, B, "box"]
    assert len(asked) == 1
    assert found.notes[0].startswith("docker did not answer within 1 s: names")


def test_a_slow_engine_is_asked_again_for_a_name_that_it_alone_may_know(tree: Tree) -> None:
    known, lists = replies(ENGINE), iter((None,))
    with server(tree.root / SOCKET, lambda r: next(lists, known(r))) as asked:
        found = resolve(tree.host, ["web"])
    assert names(found) == ["web"]
    assert found.notes == ()
    assert sum(resource.startswith("/containers/json") for resource in asked) == 2


def test_an_engine_that_hangs_is_asked_again_once(tree: Tree) -> None:
    said = r"^No such container: web; no engine answered"
    hangs = server(tree.root / SOCKET, lambda _: None)
    with hangs as asked, pytest.raises(TargetError, match=said):
        resolve(tree.host, [A, "web", "db"])
    assert len(asked) == 2


def test_an_engine_that_lists_but_does_not_inspect_gives_the_names(tree: Tree) -> None:
    known = replies(ENGINE)
    with server(
        tree.root / SOCKET, lambda r: known(r) if r.startswith("/containers/json") else b""
    ):
        found = resolve(tree.host, ["web"])
    assert names(found) == ["web"]
    assert "docker closed the connection without an answer" in found.notes[0]


def test_an_engine_that_talks_nonsense_is_silent(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(dict.fromkeys(ENGINE, '[{"Id": 7}]'))):
        found = resolve(tree.host, [A])
    assert names(found) == [A]
    assert "said what no engine says" in found.notes[0]


def test_a_name_without_an_engine_is_answered_with_the_ids(tree: Tree) -> None:
    with pytest.raises(TargetError, match=r"^No such container: web; no engine answered, so give"):
        resolve(tree.host, ["web"])
    with pytest.raises(TargetError, match=A[:12]):
        resolve(tree.host, ["web"])


def test_a_prefix_that_fits_two_names_both(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(ENGINE)), pytest.raises(TargetError) as caught:
        resolve(tree.host, ["4f"])
    assert str(caught.value) == (
        "4f may be any of docker://4f1caaaaaaaa (web), docker://4f77bbbbbbbb (db)"
    )


def test_a_prefix_of_one_digit_is_enough(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(ENGINE)):
        assert names(resolve(tree.host, ["9"])) == ["gone"]


def test_an_exact_name_wins_over_a_prefix(tree: Tree) -> None:
    known = ENGINE | {"/containers/json": json.dumps([*LIST[:2], {"Id": C, "Names": ["/4f1"]}])}
    with server(tree.root / SOCKET, replies(known)):
        assert [target.id for target in resolve(tree.host, ["4f1"]).targets] == [C]


def test_an_unknown_name_is_answered_with_the_nearest(tree: Tree) -> None:
    with (
        server(tree.root / SOCKET, replies(ENGINE)),
        pytest.raises(TargetError, match=r"^No such container: wbe; nearest: web$"),
    ):
        resolve(tree.host, ["wbe"])


@pytest.mark.parametrize("word", ["", "docker://", "podman://4f1c", "docker://box", "9e", "ssh"])
def test_a_word_that_fits_nobody_is_one_sentence(tree: Tree, word: str) -> None:
    with pytest.raises(TargetError, match=r"^No such container: .*; no engine answered"):
        resolve(tree.host, [word])


@pytest.mark.parametrize(
    ("word", "runtime", "pid"),
    [
        ("box", "lxc", 9),
        ("lxc://box", "lxc", 9),
        ("docker://4f1c", "docker", 7),
        ("4f7", "docker", 8),
        ("pid://7", "docker", 7),
        ("pid://11", "process", 11),
        ("12", "process", 12),
        ("cgroup:///mine", "cgroup", 11),
        ("cgroup://mine/", "cgroup", 11),
        ("cgroup:///sys/fs/cgroup/mine", "cgroup", 11),
        (f"cgroup:///docker/{A}", "docker", 7),
        ("unit://ssh.service", "systemd", 10),
        ("unit://ssh", "systemd", 10),
        ("ssh.service", "systemd", 10),
        (f"unit://docker-{B}.scope", "docker", 8),
        ("self", "self", 100),
    ],
)
def test_the_kernel_alone_resolves(tree: Tree, word: str, runtime: str, pid: int) -> None:
    (target,) = resolve(tree.host, [word]).targets
    assert target.init is not None
    assert (target.runtime, target.init.pid) == (runtime, pid)


def test_units_with_one_name_are_told_apart_by_their_groups(tree: Tree) -> None:
    for uid in (1000, 1001):
        tree.task(uid, f"/user.slice/user-{uid}.slice/app.service")
    with pytest.raises(TargetError) as caught:
        resolve(tree.host, ["unit://app.service"])
    assert str(caught.value) == (
        "unit://app.service may be any of cgroup:///user.slice/user-1000.slice/app.service, "
        "cgroup:///user.slice/user-1001.slice/app.service"
    )


def test_a_unit_in_a_slice_of_its_own_is_found(tree: Tree) -> None:
    tree.task(20, "/system.slice/system-getty.slice/getty@tty1.service")
    (target,) = resolve(tree.host, ["unit://getty@tty1.service"]).targets
    assert target.name == "getty@tty1.service"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("pid://999", "pid://999: there is no such process"),
        ("pid://1x", "pid://1x: a process id is a number"),
        ("pid://" + "9" * 30, "pid://" + "9" * 30 + ": a process id is a number"),
        ("cgroup:///none", "cgroup:///none: no control group there has a process"),
        ("cgroup:///../../mine", "cgroup:///../../mine: no control group there has a process"),
        ("unit://none.service", "unit://none.service: no such unit has a control group"),
        ("pod/web", "pod/web: pods are not supported yet"),
        ("\x1b[31mweb\u202e", r"No such container: \x1b[31mweb\u202e;"),
        ("pid://\x1b[2J", r"pid://\x1b[2J: a process id is a number"),
        ("\x1b://x", r"\x1b:// is no kind of target"),
        (C, f"No such container: {C}"),
    ],
)
def test_what_cannot_be_resolved_is_one_harmless_sentence(
    tree: Tree, word: str, sentence: str
) -> None:
    with pytest.raises(TargetError) as caught:
        resolve(tree.host, [word])
    assert str(caught.value).startswith(sentence)
    assert "\x1b" not in str(caught.value)


def test_a_container_asked_for_twice_is_one_target(tree: Tree) -> None:
    assert [target.id for target in resolve(tree.host, [A, "pid://7", "4f1c"]).targets] == [A]


def test_everything_is_what_lives_with_the_names_of_one_list(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(ENGINE)) as asked:
        found = everything(tree.host)
    assert names(found) == ["12", "web", "db", "box"]
    assert asked == ["/containers/json?all=1"]
    web = found.targets[1]
    assert (web.image, web.command, web.created_at_ns) == ("nginx:1", "nginx -g 'x'", 5 * 10**9)
    assert web.ports == (Port(port=80, host_address="0.0.0.0", host_port=8080),)


def test_everything_needs_no_engine(tree: Tree) -> None:
    assert names(everything(tree.host)) == ["12", A, B, "box"]


def test_a_name_that_no_engine_accepts_is_never_sent(tree: Tree) -> None:
    with server(tree.root / SOCKET, replies(ENGINE)) as asked:
        assert Docker(tree.host).inspect("../info?x") is None
        assert Docker(tree.host).inspect("a b\r\nX: y") is None
    assert asked == []


def test_docker_host_of_another_machine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    assert Docker(Host()).path == "/var/run/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "unix:///x/sock")
    assert Docker(Host()).path == "/x/sock"
    assert Docker(Host("/recorded")).path == "/recorded/var/run/docker.sock"
