"""The disposable container: its namespaces, its rights, its files, and who joins it."""

import os
import signal
from pathlib import Path

from tests.live.boxes import (
    children,
    handles_term,
    is_v1,
    read,
    status,
    until,
)
from whybox.kernel.finding import containers, recognise
from whybox.kernel.host import Host
from whybox.lab import rootfs, workload
from whybox.lab.box import Box

MIB = 1 << 20


def test_all_namespaces_but_user_and_time_are_its_own() -> None:
    with Box() as box:
        box.start(workload.idle())
        mine, theirs = (
            {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in os.listdir("/proc/self/ns")}
            for pid in ("self", box.pid)
        )
        # On v1 engines leave the host's cgroup namespace, on v2 they make one.
        shared = {"user", "time", "time_for_children"} | ({"cgroup"} if is_v1("pids") else set())
        assert {name for name in mine if mine[name] == theirs[name]} == shared
        assert status(box.pid, "NSpid").split()[-1] == "1"


def test_it_runs_as_nobody_special_with_an_engines_bounding_set() -> None:
    with Box() as box:
        box.start(workload.idle())
        assert status(box.pid, "Uid").split() == ["1000"] * 4
        assert int(status(box.pid, "CapEff"), 16) == 0
        assert int(status(box.pid, "CapBnd"), 16) == 0xA80425FB
        assert os.stat(f"/proc/{box.pid}/fd").st_uid == 1000, "it may look at itself"


def test_root_in_it_has_an_engines_capabilities_and_no_more() -> None:
    with Box() as box:
        box.user(0, 0)
        box.no_new_privs()
        box.start(workload.idle())
        assert int(status(box.pid, "CapEff"), 16) == 0xA80425FB
        assert status(box.pid, "NoNewPrivs") == "1"


def test_it_is_found_from_the_kernel_alone_as_the_same_target() -> None:
    with Box("one/two") as box:
        box.port(8080)
        box.start(workload.idle())
        target = box.target()
        found = next(other for other in containers(Host()) if other.id == box.name)
        assert (found.init, found.cgroups, found.namespaces, found.runtime) == (
            target.init,
            target.cgroups,
            target.namespaces,
            "whybox",
        )
        assert recognise(target.cgroups["pids" if is_v1("pids") else ""]) == ("whybox", box.name)
        assert [port.port for port in target.ports] == [8080]


def test_a_group_around_it_is_no_container_of_its_own() -> None:
    with Box("inner") as box:
        box.cpu(parent_cores=0.5)
        box.start(workload.idle())
        assert [t.id for t in containers(Host()) if box.name in t.id] == [box.name]


def test_pid_1_without_handlers_hears_no_term_from_inside() -> None:
    with Box() as box:
        box.start(workload.deaf())
        box.run(workload.send_repeatedly(signal.SIGTERM, 0.05))
        assert box.wait(0.5) is None
        assert int(status(box.pid, "SigCgt"), 16) & 0x7FFFFFFF == 0


def test_init_passes_term_on_and_ends_as_the_program_does() -> None:
    with Box() as box:
        box.init()
        box.start(workload.deaf())
        assert until(lambda: len(children(box.pid)) == 1)
        assert until(lambda: Path(f"/proc/{box.pid}/comm").read_text() == "init\n")
        box.signal(signal.SIGTERM)
        assert box.wait(5) == 128 + signal.SIGTERM


def test_init_reaps_orphans() -> None:
    with Box() as box:
        box.init()
        box.start(workload.orphans(5))
        assert until(lambda: len(children(box.pid)) == 6 or has_no_orphan_left(box))
        assert until(lambda: has_no_orphan_left(box))


def has_no_orphan_left(box: Box) -> bool:
    return len(children(box.pid)) == 1


def test_root_of_its_user_namespace_is_nobody_outside() -> None:
    with Box() as box:
        box.user_namespace()
        box.start(workload.idle())
        assert Path(f"/proc/{box.pid}/uid_map").read_text().split() == ["0", "100000", "65536"]
        assert status(box.pid, "Uid").split() == ["100000"] * 4
        assert box.shell(["sh", "-c", 'test "$(id -u)" = 0']) == 0


def test_a_process_that_joins_is_in_all_its_groups_and_namespaces() -> None:
    with Box() as box:
        box.start(workload.idle())
        pid = box.run(workload.deaf())
        for file in ("cgroup", "uid_map", "mountinfo"):
            assert Path(f"/proc/{pid}/{file}").read_text() == read(f"/proc/{box.pid}/{file}")
        for kind in ("pid", "mnt", "net", "uts", "ipc", "cgroup", "user"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(
                f"/proc/{box.pid}/ns/{kind}"
            )
        assert status(pid, "Uid") == status(box.pid, "Uid")


def test_a_process_can_join_a_user_namespace() -> None:
    with Box() as box:
        box.user_namespace()
        box.start(workload.idle())
        pid = box.run(workload.deaf())
        assert status(pid, "Uid").split() == ["100000"] * 4


def test_a_lower_file_is_in_the_image_and_copied_up_by_a_write() -> None:
    with Box() as box:
        box.lower_file("/data/big", bytes=3 * MIB + 5)
        box.start(workload.append_once("/data/big", 0.3))
        inside = Path(f"/proc/{box.pid}/root/data/big")
        upper = Path(rootfs.disk(), f"whybox-{box.name}", "upper/data/big")
        assert inside.stat().st_size == 3 * MIB + 5
        assert inside.stat().st_blocks * 512 >= 3 * MIB, "real blocks, no hole"
        assert not upper.exists()
        assert until(lambda: inside.stat().st_size == 3 * MIB + 6), box.error()
        assert upper.stat().st_size == 3 * MIB + 6


def test_a_volume_has_the_same_files_and_copies_nothing() -> None:
    with Box() as box:
        box.lower_file("/data/big", bytes=MIB)
        box.volume("/data")
        box.start(workload.append_once("/data/big", 0.0))
        assert until(lambda: Path(f"/proc/{box.pid}/root/data/big").stat().st_size == MIB + 1)
        assert f" {box_directory(box)}/volumes/0 /data " in read(f"/proc/{box.pid}/mountinfo")
        assert not Path(box_directory(box), "upper/data/big").exists()


def box_directory(box: Box) -> str:
    """As mountinfo names it: without what is above its file system."""
    path = f"{rootfs.disk()}/whybox-{box.name}"
    point = path
    while not os.path.ismount(point):
        point = os.path.dirname(point)
    return "/" + os.path.relpath(path, point)


def test_the_hosts_files_are_seen_and_not_touched() -> None:
    mark = f"/etc/whybox-test-{os.getpid()}"
    with Box() as box:
        box.user(0, 0)
        box.start(workload.idle())
        assert box.shell(["sh", "-c", f"test -e /etc/passwd && echo x > {mark}"]) == 0
        assert not os.path.exists(mark)
        assert box.shell(["sh", "-c", "echo 1 > /proc/sys/kernel/printk"]) != 0


def test_shell_gives_the_commands_exit_status() -> None:
    with Box() as box:
        box.start(workload.idle())
        assert box.shell(["sh", "-c", "exit 7"]) == 7
        assert box.shell(["no such command"]) == 127


def test_sysctls_are_the_boxs_own() -> None:
    before = read("/proc/sys/net/ipv4/tcp_fin_timeout")
    with Box() as box:
        box.sysctl("net.ipv4.tcp_fin_timeout", "17")
        box.start(workload.idle())
        assert box.shell(["sh", "-c", 'test "$(cat /proc/sys/net/ipv4/tcp_fin_timeout)" = 17']) == 0
    assert read("/proc/sys/net/ipv4/tcp_fin_timeout") == before


def test_a_factory_will_do_for_a_program() -> None:
    with Box() as box:
        box.start(workload.idle)
        assert until(lambda: handles_term(box.pid)), box.error()
