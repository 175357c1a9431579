"""A change in the words of each runtime: every change, every runtime, lines fit for a shell."""

import shlex
from pathlib import Path
from typing import get_args

import pytest
from msgspec import structs

from tests.pure.runtimes_tree import V1, V2, A, Tree
from whybox import change
from whybox.change import Change
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import Cost, Cure, Diagnosis, Finding, Report, Safety, Verdict
from whybox.runtimes.commands import commands, with_commands, word

SAMPLES: dict[type, Change] = {
    type(one): one
    for one in (
        change.CpuQuota(0.9),
        change.CpuBurst(50_000),
        change.MemoryLimit(128 << 20),
        change.MemoryHigh(96 << 20),
        change.SwapLimit(32 << 20),
        change.Swappiness(0),
        change.HugepageLimit(8 << 20, 2 << 20),
        change.CpuWeight(2048),
        change.CpuSet("0-3"),
        change.IoLimit("8:0", "write bytes", None),
        change.PidsLimit(500),
        change.OpenFiles(4096),
        change.ShmSize(256 << 20),
        change.HostSysctl("fs.inotify.max_user_instances", "512"),
        change.Sysctl("kernel.shmmni", "8192"),
        change.Nameservers(("10.0.0.1",), ("10.0.0.9",)),
        change.Unpause(),
        change.ThawFilesystem("/mnt/my data"),
        change.StopTimeout(30),
        change.WithInit(),
        change.RunAsUser(1000, 1000),
        change.WithUserNamespace(),
        change.Volume("/var/lib/my data"),
        change.FileAccess("/my data", uid=1000, gid=1000, mode=0o750),
        change.GrantCapabilities(("SYS_NICE",)),
        change.OnlyCapabilities(("CHOWN",), ("/dev/fuse",)),
        change.AllowSystemCalls(("mount",)),
        change.SeccompProfile(("read", "write")),
        change.MountOption("/my tmp", "exec"),
        change.LinkUp("eth0"),
        change.AddAddress("eth0", "10.0.0.2/24"),
        change.DefaultRoute("10.0.0.1", "eth0"),
        change.JoinBridge("veth7", "br0"),
        change.LinkMtu("eth0", 1500),
        change.NoQueue("eth0"),
        change.IpForward(),
        change.FilterRule("nft inet fw", "forward", 2, handle=9),
        change.ListenOn("0.0.0.0", 80),
        change.InNetwork("keep each connection on one way"),
        change.InProgram("wait for its children"),
        change.EmptyFile("/proc/7/fd/5"),
        change.LogLimit(10 << 20, 3),
        change.LayerLimit(64 << 20, "/var/my data", quota=False),
        change.VolumeLimit("scratch", 1 << 30),
        change.ProjectQuota(42, "/mnt/my data", "xfs", bytes=20 << 20),
    )
}
#: What an engine has not, and what belongs to the kubelet and not to a pod.
SILENT = {
    "docker": (change.VolumeLimit,),
    "podman": (change.VolumeLimit,),
    "kubernetes": (change.LogLimit,),
}
SAID_BY_NO_COMMAND = (change.ListenOn, change.InNetwork, change.InProgram)
PATHS = {
    "docker": f"/docker/{A}",
    "podman": f"/machine.slice/libpod-{A}.scope",
    "kubernetes": f"/kubepods.slice/kubepods-pod7.slice/cri-containerd-{A}.scope",
    "systemd": "/system.slice/app.service",
    "cgroup": "/my group",
    "whybox": "/whybox-demo",
    "lxc": "/lxc.payload.demo",
    "process": "/",
    "self": "/",
}
WRITES_FILES = ("cgroup", "whybox", "lxc")
CHANGES = tuple(SAMPLES.values())
#: What only a file can say that this tree does not have: another version's, or a controller's.
NO_FILE = {
    V1: (
        change.MemoryHigh,
        change.HugepageLimit,
        change.IoLimit,
        change.CpuSet,
        change.Unpause,
    ),
    V2: (change.Swappiness,),
}


def target(kind: str, mountinfo: str = V2) -> Target:
    names = ("",) if mountinfo == V2 else ("cpu", "memory", "pids", "name=systemd")
    engine = kind in ("docker", "podman", "kubernetes")
    return Target(
        id=A if engine else PATHS[kind],
        name={"docker": "web", "podman": "web", "systemd": "app.service"}.get(kind, PATHS[kind]),
        runtime="containerd" if kind == "kubernetes" else kind,
        init=TaskId(pid=7, start_ticks=1),
        cgroups=dict.fromkeys(names, PATHS[kind]),
        image="nginx:1" if engine else None,
    )


def machine(root: Path, mountinfo: str = V2) -> Host:
    tree = Tree(root, mountinfo)
    for pid, path in enumerate(PATHS.values(), start=200):
        tree.task(pid, path)
    return tree.host


@pytest.fixture
def v2(tmp_path: Path) -> Host:
    return machine(tmp_path)


@pytest.fixture
def v1(tmp_path: Path) -> Host:
    return machine(tmp_path, V1)


def test_there_is_a_sample_of_every_change() -> None:
    assert set(SAMPLES) == set(get_args(Change))


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("one", CHANGES, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("mountinfo", [V1, V2], ids=["v1", "v2"])
def test_every_runtime_says_every_change_in_lines_that_a_shell_can_read(
    tmp_path: Path, kind: str, one: Change, mountinfo: str
) -> None:
    lines = commands(target(kind, mountinfo), one, machine(tmp_path, mountinfo))
    if kind in ("docker", "podman", "kubernetes") and not isinstance(one, NO_FILE[mountinfo]):
        assert bool(lines) != isinstance(one, (*SAID_BY_NO_COMMAND, *SILENT[kind]))
    for line in lines:
        assert shlex.split(line)
        assert "\n" not in line


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (change.CpuQuota(0.9), "docker update --cpus 0.9 4f1caaaaaaaa"),
        (change.CpuQuota(None), "echo max > /sys/fs/cgroup/docker/ID/cpu.max"),
        (change.CpuBurst(50_000), "echo 50000 > /sys/fs/cgroup/docker/ID/cpu.max.burst"),
        (change.WithInit(), "docker run --init … --name web nginx:1"),
        (change.RunAsUser(1000, 1001), "docker run --user 1000:1001 … --name web nginx:1"),
        (change.WithUserNamespace(), "dockerd --userns-remap=default …"),
        (change.FileAccess("/d", uid=0, gid=5), "chown -h 0:5 /proc/7/root/d"),
        (change.FileAccess("/d", mode=0o711), "chmod 0711 /proc/7/root/d"),
        (
            change.GrantCapabilities(("SYS_NICE",)),
            "docker run --cap-add SYS_NICE … --name web nginx:1",
        ),
        (
            change.AllowSystemCalls(("mount",)),
            "docker run --security-opt seccomp=profile.json … --name web nginx:1",
        ),
        (change.MountOption("/t", "exec"), "docker run --tmpfs /t:exec … --name web nginx:1"),
        (change.Volume("/d"), "docker run -v web-d:/d … --name web nginx:1"),
        (
            change.Volume("/var/my data"),
            "docker run -v 'web-var-my-data:/var/my data' … --name web nginx:1",
        ),
        (change.EmptyFile("/proc/7/fd/5"), "truncate --size 0 /proc/7/fd/5"),
        (
            change.LogLimit(10 << 20, 3),
            "docker run --log-opt max-size=10m --log-opt max-file=3 … --name web nginx:1",
        ),
        (
            change.LayerLimit(10 << 30, "/var", quota=True),
            "docker run --storage-opt size=10240m … --name web nginx:1",
        ),
        (
            change.LayerLimit(64 << 20, "/tmp", quota=False),
            "docker run --tmpfs /tmp:size=64m … --name web nginx:1",
        ),
        (
            change.ProjectQuota(42, "/mnt", "xfs", bytes=20 << 20, files=100),
            "xfs_quota -x -c 'limit -p bhard=20971520 ihard=100 42' /mnt",
        ),
        (
            change.ProjectQuota(42, "/mnt", "ext4", bytes=20 << 20),
            "setquota -P 42 0 20480 0 0 /mnt",
        ),
        (change.LinkUp("eth0"), "nsenter -t 7 -n ip link set eth0 up"),
        (change.LinkUp("veth7", in_container=False), "ip link set veth7 up"),
        (
            change.AddAddress("eth0", "10.0.0.2/24"),
            "nsenter -t 7 -n ip address add 10.0.0.2/24 dev eth0",
        ),
        (
            change.DefaultRoute("10.0.0.1", "eth0"),
            "nsenter -t 7 -n ip route replace default via 10.0.0.1 dev eth0",
        ),
        (change.JoinBridge("veth7", "br0"), "ip link set veth7 master br0"),
        (change.IpForward(), "sysctl -w net.ipv4.ip_forward=1"),
        (
            change.Sysctl("net.core.somaxconn", "1024", at_start=True),
            "docker run --sysctl net.core.somaxconn=1024 … --name web nginx:1",
        ),
        (change.LinkMtu("eth0", 1400), "nsenter -t 7 -n ip link set eth0 mtu 1400"),
        (change.LinkMtu("veth7", 1500, in_container=False), "ip link set veth7 mtu 1500"),
        (change.NoQueue("eth0"), "nsenter -t 7 -n tc qdisc del dev eth0 root"),
        (change.NoQueue("veth7", in_container=False), "tc qdisc del dev veth7 root"),
        (
            change.FilterRule("nft inet fw", "forward", 2, handle=9),
            "nft delete rule inet fw forward handle 9",
        ),
        (
            change.FilterRule("nft inet fw", "forward", 0),
            "nft chain inet fw forward '{ policy accept; }'",
        ),
        (
            change.FilterRule("nft ip filter", "FORWARD", 2, handle=9),
            "iptables -t filter -D FORWARD 2",
        ),
        (
            change.FilterRule("nft ip6 filter", "OUTPUT", 2, handle=9, in_container=True),
            "nsenter -t 7 -n ip6tables -t filter -D OUTPUT 2",
        ),
        (
            change.FilterRule("iptables filter", "FORWARD", 0),
            "iptables-legacy -t filter -P FORWARD ACCEPT",
        ),
        (
            change.Sysctl("kernel.shmmni", "8192"),
            "nsenter -t 7 -i sysctl -w kernel.shmmni=8192",
        ),
        (
            change.Sysctl("net.core.somaxconn", "1024"),
            "nsenter -t 7 -n sysctl -w net.core.somaxconn=1024",
        ),
        (
            change.Sysctl("net.a", "1", also=(("net.b", "2 3"),)),
            "nsenter -t 7 -n sysctl -w net.a=1 'net.b=2 3'",
        ),
        (
            change.Nameservers(("10.0.0.1",), ("10.0.0.9",)),
            "f=$(docker inspect -f '{{.ResolvConfPath}}' 4f1caaaaaaaa) && "
            "kept=$(sed '/^nameserver 10\\.0\\.0\\.9$/d;' \"$f\") && "
            'printf \'%s\\n\' "$kept" >"$f"',
        ),
        (change.MemoryHigh(4096), "echo 4096 > /sys/fs/cgroup/docker/ID/memory.high"),
        (change.MemoryHigh(None), "echo max > /sys/fs/cgroup/docker/ID/memory.high"),
        (change.SwapLimit(None), "docker update --memory-swap -1 4f1caaaaaaaa"),
        (
            change.HugepageLimit(8 << 20, 2 << 20),
            "echo 8388608 > /sys/fs/cgroup/docker/ID/hugetlb.2MB.max",
        ),
        (change.CpuWeight(2048), "docker update --cpu-shares 2048 4f1caaaaaaaa"),
        (change.CpuSet("0-3"), "docker update --cpuset-cpus 0-3 4f1caaaaaaaa"),
        (
            change.IoLimit("8:0", "write bytes", None),
            "echo '8:0 wbps=max' > /sys/fs/cgroup/docker/ID/io.max",
        ),
        (change.PidsLimit(500), "docker update --pids-limit 500 4f1caaaaaaaa"),
        (change.PidsLimit(None), "docker update --pids-limit -1 4f1caaaaaaaa"),
        (change.OpenFiles(9), "docker run --ulimit nofile=9:9 … --name web nginx:1"),
        (change.ShmSize(1 << 30), "docker run --shm-size 1024m … --name web nginx:1"),
        (change.StopTimeout(30), "docker run --stop-timeout 30 … --name web nginx:1"),
        (change.Unpause(), "docker unpause 4f1caaaaaaaa"),
        (change.HostSysctl("vm.nr_hugepages", "9"), "sysctl -w vm.nr_hugepages=9"),
        (change.ThawFilesystem("/mnt/a b"), "fsfreeze --unfreeze '/mnt/a b'"),
    ],
)
def test_docker_says(v2: Host, one: Change, expected: str) -> None:
    assert commands(target("docker"), one, v2) == (expected.replace("ID", A),)


def test_podman_says_it_with_its_own_name(v2: Host) -> None:
    said = commands(target("podman"), change.CpuQuota(1.5), v2)
    assert said == ("podman update --cpus 1.5 4f1caaaaaaaa",)
    said = commands(target("podman"), change.WithUserNamespace(), v2)
    assert said == ("podman run --userns=auto … --name web nginx:1",)


@pytest.mark.parametrize(
    ("swap", "expected"),
    [("0", "128m"), (f"{64 << 20}", "192m"), ("max", "-1"), ("1024", "131073k")],
)
def test_docker_keeps_what_may_be_swapped(tmp_path: Path, swap: str, expected: str) -> None:
    host = machine(tmp_path)
    (tmp_path / f"sys/fs/cgroup/docker/{A}/memory.swap.max").write_text(swap + "\n")
    (line,) = commands(target("docker"), change.MemoryLimit(128 << 20), host)
    assert line == f"docker update --memory 128m --memory-swap {expected} 4f1caaaaaaaa"


def test_the_memory_of_a_dead_container_is_the_sum_too(v2: Host) -> None:
    gone = Target(id=A, name="web", runtime="docker", init=None, cgroups={"": "/docker/gone"})
    (line,) = commands(gone, change.MemoryLimit(1000), v2)
    assert line == "docker update --memory 1000b --memory-swap 1000b 4f1caaaaaaaa"
    assert commands(gone, change.LinkUp("eth0"), v2) == ()


@pytest.mark.parametrize("kind", WRITES_FILES)
def test_without_an_engine_the_file_of_v2_is_written(v2: Host, kind: str) -> None:
    directory = f"/sys/fs/cgroup{PATHS[kind]}"
    expected: dict[Change, str] = {
        change.CpuQuota(0.9): f"echo 90000 > {shlex.quote(directory + '/cpu.max')}",
        change.CpuQuota(None): f"echo max > {shlex.quote(directory + '/cpu.max')}",
        change.CpuBurst(5): f"echo 5 > {shlex.quote(directory + '/cpu.max.burst')}",
        change.MemoryLimit(9): f"echo 9 > {shlex.quote(directory + '/memory.max')}",
    }
    assert {one: commands(target(kind), one, v2) for one in expected} == {
        one: (line,) for one, line in expected.items()
    }


@pytest.mark.parametrize("kind", WRITES_FILES)
def test_without_an_engine_the_file_of_v1_is_written(v1: Host, kind: str) -> None:
    cpu = f"/sys/fs/cgroup/cpu{PATHS[kind]}"
    expected: dict[Change, str] = {
        change.CpuQuota(0.9): f"echo 90000 > {shlex.quote(cpu + '/cpu.cfs_quota_us')}",
        change.CpuQuota(None): f"echo -1 > {shlex.quote(cpu + '/cpu.cfs_quota_us')}",
        change.CpuBurst(5): f"echo 5 > {shlex.quote(cpu + '/cpu.cfs_burst_us')}",
    }
    assert {one: commands(target(kind, V1), one, v1) for one in expected} == {
        one: (line,) for one, line in expected.items()
    }


def test_a_quota_is_a_share_of_the_period_that_is_set(tmp_path: Path) -> None:
    host = machine(tmp_path)
    (tmp_path / "sys/fs/cgroup/whybox-demo/cpu.max").write_text("max 20000\n")
    (line,) = commands(target("whybox"), change.CpuQuota(0.5), host)
    assert line == "echo 10000 > /sys/fs/cgroup/whybox-demo/cpu.max"


@pytest.mark.parametrize(
    ("memory", "both", "written"),
    [
        (64 << 20, 64 << 20, [("memsw", 128 << 20), ("", 128 << 20)]),
        (64 << 20, 300 << 20, [("memsw", (128 + 236) << 20), ("", 128 << 20)]),
        (256 << 20, 256 << 20, [("", 128 << 20)]),
        (64 << 20, 0x7FFFFFFFFFFFF000, [("", 128 << 20)]),
    ],
)
def test_v1_raises_memory_and_swap_before_memory(
    tmp_path: Path, memory: int, both: int, written: list[tuple[str, int]]
) -> None:
    host = machine(tmp_path, V1)
    group = "sys/fs/cgroup/memory/whybox-demo"
    (tmp_path / group / "memory.limit_in_bytes").write_text(f"{memory}\n")
    (tmp_path / group / "memory.memsw.limit_in_bytes").write_text(f"{both}\n")
    assert commands(target("whybox", V1), change.MemoryLimit(128 << 20), host) == tuple(
        f"echo {size} > /{group}/memory.{'memsw.' if name else ''}limit_in_bytes"
        for name, size in written
    )


def test_an_ancestors_limit_is_written_where_it_is(v2: Host, tmp_path: Path) -> None:
    for one, name, value in (
        (change.CpuQuota(2, cgroup="/docker"), "cpu.max", 200_000),
        (change.MemoryLimit(4096, cgroup="/docker"), "memory.max", 4096),
    ):
        expected = (f"echo {value} > /sys/fs/cgroup/docker/{name}",)
        assert commands(target("docker"), one, v2) == expected


def test_a_parameter_of_a_dead_containers_namespace_is_for_the_next_one(v2: Host) -> None:
    gone = structs.replace(target("docker"), init=None)
    said = commands(gone, change.Sysctl("kernel.shmmni", "9"), v2)
    assert said == ("docker run --sysctl kernel.shmmni=9 … --name web nginx:1",)


def test_reservations_are_raised_with_the_limit_on_huge_pages(v2: Host) -> None:
    one = change.HugepageLimit(8 << 20, 2 << 20, reserved=True)
    first, second = commands(target("docker"), one, v2)
    assert first.endswith("hugetlb.2MB.rsvd.max")
    assert second.endswith("hugetlb.2MB.max")


def test_a_group_that_is_not_there_is_not_written(v2: Host) -> None:
    assert commands(target("docker"), change.MemoryLimit(4096, cgroup="/nobody"), v2) == ()


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (change.CpuQuota(0.9), ("systemctl set-property app.service CPUQuota=90%",)),
        (change.CpuQuota(None), ("systemctl set-property app.service CPUQuota=",)),
        (change.MemoryLimit(1024), ("systemctl set-property app.service MemoryMax=1024",)),
        (
            change.CpuBurst(7),
            ("echo 7 > /sys/fs/cgroup/system.slice/app.service/cpu.max.burst",),
        ),
        (change.RunAsUser(5, 6), ("systemctl edit app.service  # [Service] User=5 Group=6",)),
        (change.WithUserNamespace(), ("systemctl edit app.service  # [Service] PrivateUsers=yes",)),
        (change.WithInit(), ()),
        (change.Volume("/d"), ()),
        (change.ShmSize(4096), ()),
        (change.CpuWeight(1024), ("systemctl set-property app.service CPUWeight=39",)),
        (change.CpuSet("1"), ("systemctl set-property app.service AllowedCPUs=1",)),
        (change.MemoryHigh(None), ("systemctl set-property app.service MemoryHigh=infinity",)),
        (change.SwapLimit(0), ("systemctl set-property app.service MemorySwapMax=0",)),
        (change.PidsLimit(None), ("systemctl set-property app.service TasksMax=infinity",)),
        (change.OpenFiles(9), ("systemctl edit app.service  # [Service] LimitNOFILE=9",)),
        (change.StopTimeout(9), ("systemctl edit app.service  # [Service] TimeoutStopSec=9",)),
        (change.Unpause(), ("systemctl thaw app.service",)),
        (
            change.Sysctl("kernel.sem", "250 32000 100 128"),
            ("nsenter -t 7 -i sysctl -w 'kernel.sem=250 32000 100 128'",),
        ),
    ],
)
def test_systemd_says(v2: Host, one: Change, expected: tuple[str, ...]) -> None:
    assert commands(target("systemd"), one, v2) == expected


@pytest.mark.parametrize(
    ("one", "spec"),
    [
        (
            change.CpuQuota(0.9),
            '{"containers":[{"name":"CONTAINER","resources":{"limits":{"cpu":"900m"}}}]}',
        ),
        (
            change.MemoryLimit(128 << 20),
            '{"containers":[{"name":"CONTAINER","resources":{"limits":{"memory":"128Mi"}}}]}',
        ),
        (change.WithInit(), '{"shareProcessNamespace":true}'),
        (change.WithUserNamespace(), '{"hostUsers":false}'),
        (change.StopTimeout(9), '{"terminationGracePeriodSeconds":9}'),
        (
            change.Sysctl("kernel.shmmni", "9"),
            '{"securityContext":{"sysctls":[{"name":"kernel.shmmni","value":"9"}]}}',
        ),
        (
            change.CpuWeight(512),
            '{"containers":[{"name":"CONTAINER","resources":{"requests":{"cpu":"500m"}}}]}',
        ),
        (
            change.HugepageLimit(8 << 20, 2 << 20),
            '{"containers":[{"name":"CONTAINER","resources":{"limits":{"hugepages-2Mi":"8Mi"}}}]}',
        ),
        (
            change.ShmSize(1 << 30),
            '{"volumes":[{"name":"data","emptyDir":{"medium":"Memory","sizeLimit":"1024Mi"}}],'
            '"containers":[{"name":"CONTAINER","volumeMounts":[{"name":"data",'
            '"mountPath":"/dev/shm"}]}]}',
        ),
        (
            change.RunAsUser(5, 6),
            '{"containers":[{"name":"CONTAINER",'
            '"securityContext":{"runAsUser":5,"runAsGroup":6}}]}',
        ),
        (
            change.Volume("/d"),
            '{"volumes":[{"name":"data","emptyDir":{}}],"containers":[{"name":"CONTAINER",'
            '"volumeMounts":[{"name":"data","mountPath":"/d"}]}]}',
        ),
    ],
)
def test_kubernetes_patches_what_made_the_pod(v2: Host, one: Change, spec: str) -> None:
    (line,) = commands(target("kubernetes"), one, v2)
    words = shlex.split(line, comments=True)
    assert words[:4] == ["kubectl", "patch", "deployment", "DEPLOYMENT"]
    assert words[5] == '{"spec":{"template":{"spec":' + spec + "}}}"


def test_from_inside_only_the_network_can_be_changed(v2: Host) -> None:
    said = {type(one): commands(target("self"), one, v2) for one in CHANGES}
    assert said[change.LinkUp] == ("ip link set eth0 up",)
    assert said[change.MemoryLimit] == said[change.CpuQuota] == said[change.WithInit] == ()
    assert said[change.PidsLimit] == said[change.OpenFiles] == ()


def test_a_hostile_name_stays_one_word_and_harmless(v2: Host) -> None:
    nasty = "x; rm -rf /\x1b[31m'"
    (line,) = commands(target("docker"), change.LinkUp(nasty), v2)
    assert line == r"nsenter -t 7 -n ip link set $'x; rm -rf /\x1b[31m\'' up"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("docker", "web"),
        ("kubernetes", "4f1caaaaaaaa"),
        ("systemd", "unit://app.service"),
        ("cgroup", "cgroup:///my group"),
        ("self", "self"),
    ],
)
def test_the_word_for_a_target_is_one_that_resolves(kind: str, expected: str) -> None:
    who = target(kind)
    if kind == "kubernetes":
        who = Target(id=A, name=A, runtime="containerd", init=None, cgroups=who.cgroups)
    assert word(who) == expected


def test_a_report_gets_commands_and_a_way_to_verify(v2: Host) -> None:
    cures = (
        Cure(advice="More.", safety=Safety.LOW_RISK, change=change.CpuQuota(0.9)),
        Cure(advice="Less.", safety=Safety.INSPECT),
        Cure(advice="Own.", safety=Safety.INSPECT, commands=("true",), verify="false"),
    )
    finding = Finding(
        verdict=Verdict.FOUND, case="cpu/throttled", summary="It is slow.", cures=cures
    )
    report = Report(
        version="0",
        window_seconds=1.0,
        cost=Cost(cpu_ms=0.0, reads=0),
        targets=(Diagnosis(target=target("docker"), findings=(finding,)),),
    )
    (filled,) = with_commands(report, v2).targets[0].findings
    verify = "whybox diagnose web --case cpu/throttled"
    assert [(cure.commands, cure.verify) for cure in filled.cures] == [
        (("docker update --cpus 0.9 4f1caaaaaaaa",), verify),
        ((), verify),
        (("true",), "false"),
    ]
