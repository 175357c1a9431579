"""The words of Docker, systemd and Kubernetes for each change."""

import shlex

import pytest

from tests.pure.changes import target, v2
from tests.pure.runtimes_tree import A
from whybox import change
from whybox.change import Change
from whybox.kernel.host import Host
from whybox.runtimes.commands import commands

__all__ = ["v2"]  # the fixture


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
