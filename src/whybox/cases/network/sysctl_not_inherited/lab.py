"""A server on a host whose tcp_fin_timeout was changed: a namespace begins with 60, as ever.

The host is the node's namespace, of which the box is a child.
"""

from collections.abc import Mapping

from whybox.change import Sysctl
from whybox.kernel import task
from whybox.kernel.host import Host
from whybox.lab import machine, workload
from whybox.lab.box import Box, Network
from whybox.lab.lab import Lab, Scenario
from whybox.model import Finding

PORT = 8080
FIN_TIMEOUT = "net.ipv4.tcp_fin_timeout"
KEEPALIVE = {
    "net.ipv4.tcp_keepalive_time": "600",
    "net.ipv4.tcp_keepalive_intvl": "10",
    "net.ipv4.tcp_keepalive_probes": "3",
}


def serving(node: Mapping[str, str] = {}, own: Mapping[str, str] = {}) -> Scenario:
    """A server; what is set for it, and then on its node."""

    def scenario(box: Box) -> None:
        box.network(Network())
        for key, value in own.items():
            box.sysctl(key, value)
        box.start(workload.listen("0.0.0.0", PORT))
        set_on_node(box, node)

    return scenario


def set_on_node(box: Box, values: Mapping[str, str]) -> None:
    """As somebody would with ``sysctl -w`` on the host."""
    node = task.stat(Host(), box.pid).ppid
    for key, value in values.items():
        machine.set_own(Sysctl(key, value), node)


def numbers(finding: Finding) -> str | None:
    """Values that the lab has set."""
    known = ("is 15 there and 60 in the container", "and 1 more", "600", "cubic", "16777216")
    said = finding.summary + " ".join(evidence.says for evidence in finding.evidence)
    return None if any(value in said for value in known) else f"no value of the lab's in: {said}"


LAB = Lab(
    healthy=serving(),
    reproduce=serving({FIN_TIMEOUT: "15"}),
    variants={
        "three that belong together": serving(KEEPALIVE),
        "four": serving({FIN_TIMEOUT: "15", **KEEPALIVE}),
        "copied before it was changed": serving(
            {"net.ipv4.tcp_rmem": "4096 131072 16777216"},
            {"net.ipv4.tcp_rmem": "4096 131072 6291456"},
        ),
    },
    look_alikes={
        "a value that the container was given": serving({}, {"net.core.somaxconn": "1024"}),
        "both were changed, each in its way": serving(
            {"net.core.somaxconn": "8192"}, {"net.core.somaxconn": "1024"}
        ),
        "both were changed alike": serving({FIN_TIMEOUT: "15"}, {FIN_TIMEOUT: "15"}),
        "what engines set in a container": serving(
            {},
            {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ping_group_range": "0 2147483647",
            },
        ),
        "what a host sets for itself": serving(
            {
                "net.ipv4.ip_forward": "1",
                "net.ipv4.conf.all.rp_filter": "1",
                "net.unix.max_dgram_qlen": "512",
            }
        ),
    },
    numbers=numbers,
    window_seconds=0.2,
)
