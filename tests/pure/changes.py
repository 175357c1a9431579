"""A sample of every change, and a machine with a container of every kind."""

from pathlib import Path

import pytest

from tests.pure.runtimes_tree import V1, V2, A, Tree
from whybox import change
from whybox.change import Change
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId

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
