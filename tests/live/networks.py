"""Two network namespaces for the tests of the readers.

"Near" has a bridge and a bit of everything; "far" sees it as a container does, behind a veth.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.live.conftest import require

NEAR = f"whybox-near-{os.getpid()}"
FAR = f"whybox-far-{os.getpid()}"
NEAR_SETUP = f"""\
link set lo up
link add br0 type bridge
link add vfar type veth peer name eth0 netns {FAR}
link add vhere type veth peer name x0
link add mv0 link x0 type macvlan
link set br0 addrgenmode none
link set vfar addrgenmode none
link set vhere addrgenmode none mtu 1400
link set vfar master br0
link set vhere master br0
link set vfar type bridge_slave isolated on
link set vhere type bridge_slave hairpin on
link set br0 up
link set vfar up
link set vhere up
address add 10.9.0.1/24 dev br0
address add 10.9.0.9/24 dev br0
address add 10.9.1.1 peer 10.9.1.2/32 dev br0
address add 2001:db8::1/64 dev br0 nodad
route add default via 10.9.0.2
route add 10.7.0.0/16 nexthop via 10.9.0.2 weight 3 nexthop via 10.9.0.3 dev br0
route add blackhole 10.8.0.0/16 metric 7
route add unreachable 10.6.0.0/16
route add prohibit 10.5.0.0/16
route add throw 10.3.0.0/16 table 100
route add 10.4.0.0/16 via 10.9.0.2 mtu 1280 onlink dev br0
route add 10.2.0.0/16 via inet6 2001:db8::2 dev br0
route add 2001:db8:7::/48 via 2001:db8::2 mtu 1300
route add blackhole 2001:db8:8::/48
route add unreachable 2001:db8:6::/48
route add prohibit 2001:db8:5::/48
neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 nud permanent dev br0
neighbour add 10.9.0.3 lladdr 02:00:00:00:00:03 nud stale dev br0
neighbour add 2001:db8::2 lladdr 02:00:00:00:00:06 nud permanent dev br0
"""
FAR_SETUP = """\
link set lo up
link set eth0 addrgenmode none
link set eth0 up
address add 10.9.0.4/24 dev eth0
"""


def path(name: str) -> str:
    return f"/run/netns/{name}"


def ip(*words: str, text: str = "") -> str:
    done = subprocess.run(["ip", *words], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def ip_json(name: str, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ip("-n", name, "-j", *words) or "[]")
    return [each for each in found if each]


def eventually(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def delete(*names: str) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def unmet_need() -> str | None:
    """Why the namespaces cannot be made here."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    missing = [tool for tool in ("ip", "ss", "setpriv") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def settled() -> bool:
    """The kernel follows the carrier of a link up to a second late (linkwatch)."""
    states = {each["ifname"]: each["operstate"] for each in ip_json(NEAR, "link")}
    return [states[name] for name in ("br0", "vfar", "vhere")] == ["UP", "UP", "LOWERLAYERDOWN"]


@contextmanager
def made() -> Iterator[None]:
    """The two namespaces, for as long as the context lasts."""
    require(unmet_need())
    try:
        ip("netns", "add", NEAR)
        ip("netns", "add", FAR)
        ip("-n", NEAR, "-batch", "-", text=NEAR_SETUP)
        ip("-n", FAR, "-batch", "-", text=FAR_SETUP)
        eventually(settled, "the links did not settle")
        yield
    finally:
        delete(NEAR, FAR)
    left = ip("netns", "list")
    assert NEAR not in left
    assert FAR not in left
