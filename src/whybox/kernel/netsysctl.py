"""Parameters of the network, ``/proc/sys/net``: what a namespace has of its own, and from whom.

``/proc/sys/net`` shows the namespace of whoever reads it, so a thread goes there. What a new
namespace begins with was measured on 6.1 and 6.18 and is said, as far as it is written down, in
Documentation/networking/ip-sysctl.rst and Documentation/admin-guide/sysctl/net.rst.

>>> key("net.core.somaxconn"), key("net/ipv4/conf/eth0.5/rp_filter"), key("kernel.shmmni")
('core/somaxconn', 'ipv4/conf/eth0.5/rp_filter', None)
"""

import os
import re
import stat as modes
from collections.abc import Iterable, Mapping
from enum import StrEnum

from msgspec import Struct

from whybox.kernel.host import Host, decode
from whybox.kernel.mountinfo import mounts
from whybox.kernel.namespace import FIRST_NET, namespace
from whybox.kernel.netns import call_in
from whybox.kernel.target import Target
from whybox.kernel.task import stat

_ROOT = "/proc/sys/net"
#: A value is a few numbers; longer ones (lists of ports) are compared as far as this.
_MOST_BYTES = 4096
_SWAPPED = str.maketrans("./", "/.")
#: From a container's first process up to the engine are two or three steps.
_MOST_ANCESTORS = 32
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*(/[A-Za-z0-9_][A-Za-z0-9_.:@-]*)+")

#: What a new network namespace begins with, whatever the host has: kernels differ where there are
#: two. Left out is what depends on the size of the memory, and what was given other defaults often.
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "core/somaxconn": ("4096",),
    "core/txrehash": ("1",),
    "ipv4/icmp_echo_ignore_all": ("0",),
    "ipv4/icmp_echo_ignore_broadcasts": ("1",),
    "ipv4/icmp_ratelimit": ("1000",),
    "ipv4/igmp_max_memberships": ("20",),
    "ipv4/igmp_max_msf": ("10",),
    "ipv4/ip_default_ttl": ("64",),
    "ipv4/ip_early_demux": ("1",),
    "ipv4/ip_local_port_range": ("32768 60999",),
    "ipv4/ip_local_reserved_ports": ("",),
    "ipv4/ip_no_pmtu_disc": ("0",),
    "ipv4/ip_nonlocal_bind": ("0",),
    "ipv4/ipfrag_high_thresh": ("4194304",),
    "ipv4/ipfrag_time": ("30",),
    "ipv4/tcp_abort_on_overflow": ("0",),
    "ipv4/tcp_adv_win_scale": ("1",),
    "ipv4/tcp_app_win": ("31",),
    "ipv4/tcp_autocorking": ("1",),
    "ipv4/tcp_base_mss": ("1024",),
    "ipv4/tcp_challenge_ack_limit": ("1000", "2147483647"),
    "ipv4/tcp_comp_sack_nr": ("44",),
    "ipv4/tcp_dsack": ("1",),
    "ipv4/tcp_early_retrans": ("3",),
    "ipv4/tcp_ecn": ("2",),
    "ipv4/tcp_fastopen": ("1",),
    "ipv4/tcp_fin_timeout": ("60",),
    "ipv4/tcp_frto": ("2",),
    "ipv4/tcp_keepalive_intvl": ("75",),
    "ipv4/tcp_keepalive_probes": ("9",),
    "ipv4/tcp_keepalive_time": ("7200",),
    "ipv4/tcp_limit_output_bytes": ("1048576", "4194304"),
    "ipv4/tcp_max_reordering": ("300",),
    "ipv4/tcp_min_rtt_wlen": ("300",),
    "ipv4/tcp_min_snd_mss": ("48",),
    "ipv4/tcp_min_tso_segs": ("2",),
    "ipv4/tcp_moderate_rcvbuf": ("1",),
    "ipv4/tcp_mtu_probing": ("0",),
    "ipv4/tcp_no_metrics_save": ("0",),
    "ipv4/tcp_notsent_lowat": ("4294967295", "-1"),
    "ipv4/tcp_orphan_retries": ("0",),
    "ipv4/tcp_recovery": ("1",),
    "ipv4/tcp_reordering": ("3",),
    "ipv4/tcp_retries1": ("3",),
    "ipv4/tcp_retries2": ("15",),
    "ipv4/tcp_rfc1337": ("0",),
    "ipv4/tcp_sack": ("1",),
    "ipv4/tcp_slow_start_after_idle": ("1",),
    "ipv4/tcp_syn_retries": ("6",),
    "ipv4/tcp_synack_retries": ("5",),
    "ipv4/tcp_syncookies": ("1",),
    "ipv4/tcp_thin_linear_timeouts": ("0",),
    "ipv4/tcp_timestamps": ("1",),
    "ipv4/tcp_tw_reuse": ("2",),
    "ipv4/tcp_window_scaling": ("1",),
    "ipv4/udp_rmem_min": ("4096",),
    "ipv4/udp_wmem_min": ("4096",),
}

#: A share of the hash table of connections (tcp_sk_init(), net/ipv4/tcp_ipv4.c): what divides it,
#: and the least.
SHARES: Mapping[str, tuple[int, int]] = {
    "ipv4/tcp_max_syn_backlog": (128, 128),
    "ipv4/tcp_max_tw_buckets": (2, 0),
}
_EHASH = "ipv4/tcp_ehash_entries"

#: Copied from the first namespace when a namespace is made, and what the kernel gives to that one
#: (the third number of the buffers is less on a small machine).
INHERITED: Mapping[str, tuple[str, ...]] = {
    "ipv4/tcp_congestion_control": ("cubic",),
    "ipv4/tcp_rmem": ("4096 131072 6291456", "4096 87380 6291456"),
    "ipv4/tcp_wmem": ("4096 16384 4194304",),
}

#: Which host and container have each for itself, by intent of whoever set it.
APART: Mapping[str, str] = {
    "ipv4/conf/all/rp_filter": "each namespace filters for itself",
    "ipv4/ip_forward": "the host forwards for its containers",
    "ipv4/ip_unprivileged_port_start": "engines open low ports to their containers",
    "ipv4/ping_group_range": "engines and init systems allow ping for themselves",
    "ipv6/conf/all/disable_ipv6": "engines switch IPv6 off where a network has none",
    "ipv6/conf/all/forwarding": "the host forwards for its containers",
    "netfilter/nf_conntrack_tcp_timeout_close_wait": "each namespace follows its own connections",
    "netfilter/nf_conntrack_tcp_timeout_established": "each namespace follows its own connections",
    "unix/max_dgram_qlen": "systemd raises the host's",
}

_INHERIT = "core/devconf_inherit_init_net"


class Kind(StrEnum):
    """To whom a parameter belongs, and what a new namespace begins with."""

    GLOBAL = "global"
    """One for the machine; a namespace other than the first has no such file."""
    SHARED = "shared"
    """One for the machine, which other namespaces may read."""
    READ_ONLY = "read-only"
    """Nobody can write it there."""
    INHERITED = "inherited"
    """Each namespace has its own, which began as the first namespace's at that moment."""
    RESET = "reset"
    """Each namespace has its own, which began as the kernel's default."""
    INTERFACE = "interface"
    """Each interface has its own, which began as ``default`` of its namespace."""


class Value(Struct, frozen=True):
    """One file in one namespace."""

    text: str | None
    """``None``: it may not be read, or is for writing only."""
    writable: bool


class Pair(Struct, frozen=True, kw_only=True):
    """One parameter on the host and in the container; ``None``: no such file there."""

    key: str
    """The path below ``/proc/sys/net``."""
    host: Value | None
    own: Value | None

    @property
    def name(self) -> str:
        """As ``sysctl`` prints it: a dot within a part is a slash there (sysctl.d(5))."""
        return "net." + self.key.translate(_SWAPPED)

    @property
    def differs(self) -> bool:
        """Both can be read and say different things."""
        texts = [value.text if value is not None else None for value in (self.host, self.own)]
        return None not in texts and texts[0] != texts[1]


def key(word: str) -> str | None:
    """What a person calls a parameter, as the path below ``/proc/sys/net``; ``None``: not that.

    As in sysctl(8): the separator that comes first counts, and the other one stands for itself.
    """
    first = next((letter for letter in word if letter in "./"), "")
    path = word if first == "/" else word.translate(_SWAPPED)
    path = path.removeprefix("/proc/sys/")
    below = path.removeprefix("net/")
    return below if below != path and ".." not in below and _KEY.fullmatch(below) else None


def kind(pair: Pair, inherit: int | None) -> Kind | None:
    """Of which kind it is; ``None``: neither has it. ``inherit``: ``devconf_inherit_init_net``."""
    if pair.own is None:
        return None if pair.host is None else Kind.GLOBAL
    if not pair.own.writable:
        shared = pair.host is not None and pair.host.writable
        return Kind.SHARED if shared else Kind.READ_ONLY
    area, _, rest = pair.key.partition("/")
    if area in ("ipv4", "ipv6") and rest.startswith(("conf/", "neigh/")):
        if rest.split("/")[1] not in ("all", "default"):
            return Kind.INTERFACE
        return _of_devices(area, rest, inherit)
    copied = pair.key in INHERITED or pair.key == "ipv4/ip_forward"
    return Kind.INHERITED if copied else Kind.RESET


def _of_devices(area: str, rest: str, inherit: int | None) -> Kind:
    """``devconf_inherit_init_net`` (Documentation/admin-guide/sysctl/net.rst)."""
    if rest.startswith("neigh/"):
        return Kind.RESET
    copied = {0: area == "ipv4", 1: True, 2: False, 3: True}.get(inherit or 0, False)
    return Kind.INHERITED if copied else Kind.RESET


def defaults(key: str, ehash: int | None) -> tuple[str, ...]:
    """What the kernel gives a parameter; none: not known. ``ehash``: ``tcp_ehash_entries``."""
    if key in SHARES and ehash:
        share, least = SHARES[key]
        return (str(max(least, abs(ehash) // share)),)
    return DEFAULTS.get(key, ()) + INHERITED.get(key, ())


class Seen(Struct, frozen=True, kw_only=True):
    """The parameters of two namespaces."""

    pairs: tuple[Pair, ...]
    """Those that both have; of the one that was asked for, whoever has it."""
    inherit: int | None
    ehash: int | None
    sockets: int | None
    """TCP and UDP sockets in the container's namespace; ``None``: not known."""
    sealed: bool | None
    """``/proc/sys`` is mounted read-only in the container."""


def seen(host: Host, target: Target, place: str, asked: str | None) -> Seen:
    """Read the container's and the namespace ``place``, which stands for its host.

    Raises OSError where one of them may not be entered.
    """
    if not host.live:
        raise OSError("a tree of files has no network namespace to look into")
    if target.init is None:
        raise OSError("it is not running, so its network namespace is gone")
    keys = (asked,) if asked is not None else (*DEFAULTS, *SHARES, *INHERITED, *APART)
    theirs = _hosts(host, target, place, (*keys, _INHERIT, _EHASH))
    own = _of_namespace(host, f"/proc/{target.init.pid}/ns/net", keys)
    pairs = (Pair(key=k, host=theirs.get(k), own=own.get(k)) for k in keys)
    return Seen(
        pairs=tuple(p for p in pairs if asked or (p.host is not None and p.own is not None)),
        inherit=_number(theirs.get(_INHERIT)),
        ehash=_number(theirs.get(_EHASH)),
        sockets=_sockets(host, target.init.pid),
        sealed=_sealed(host, target.init.pid),
    )


def host_of(host: Host, target: Target) -> str | None:
    """The namespace of whoever started the container: the host's, or that of a node within one.

    ``None``: it cannot be told.
    """
    mine = target.namespaces.get("net")
    pid = 0 if target.init is None else target.init.pid
    for _ in range(_MOST_ANCESTORS):
        if pid < 2:
            break
        inode = namespace(host, pid, "net")
        if inode not in (None, mine):
            return f"/proc/{pid}/ns/net"
        try:
            pid = stat(host, pid).ppid
        except OSError:
            break
    first = target.host_namespaces.get("net")
    return None if first is None or first == mine else FIRST_NET


def _hosts(host: Host, target: Target, place: str, keys: tuple[str, ...]) -> dict[str, Value]:
    """Of ``place``; what is the machine's only the first namespace has, or may write."""
    found = _of_namespace(host, place, keys)
    first = target.host_namespaces.get("net")
    lacking = tuple(k for k in keys if k not in found or not found[k].writable)
    if first in (None, host.inode(place)) or not lacking:
        return found
    return found | _of_namespace(host, FIRST_NET, lacking)


def _of_namespace(host: Host, place: str, keys: Iterable[str]) -> dict[str, Value]:
    """Read once a moment of each namespace, for all containers that are in it."""
    wanted = tuple(keys)
    name = f"sysctl {host.inode(place)} {' '.join(wanted)}"
    host.reads += len(wanted)
    return host.remembered(name, lambda: _entered(place, wanted))


def _entered(place: str, keys: tuple[str, ...]) -> dict[str, Value]:
    try:
        return call_in(place, lambda: values(keys))
    except PermissionError as error:
        raise OSError("its network namespace may not be entered: run as root") from error


def values(keys: Iterable[str]) -> dict[str, Value]:
    """The parameters that the caller's namespace has, of these."""
    found = ((each, _value(f"{_ROOT}/{each}")) for each in keys)
    return {each: value for each, value in found if value is not None}


def _value(path: str) -> Value | None:
    try:
        # The mode, not access(2): whoever looks may be root, and /proc/sys read-only.
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if not modes.S_ISREG(mode):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text: str | None = " ".join(decode(os.read(descriptor, _MOST_BYTES)).split())
        finally:
            os.close(descriptor)
    except OSError:
        text = None
    return Value(text, bool(mode & 0o222))


def _number(value: Value | None) -> int | None:
    try:
        return None if value is None or value.text is None else int(value.text)
    except ValueError:
        return None


def _sockets(host: Host, pid: int) -> int | None:
    texts = (host.optional_text(f"/proc/{pid}/net/{file}") for file in ("sockstat", "sockstat6"))
    counted = [sockets(text) for text in texts if text is not None]
    return sum(counted) if counted else None


def sockets(text: str) -> int:
    """TCP and UDP sockets in use (``/proc/net/sockstat``), whose other numbers are the machine's.

    >>> sockets("sockets: used 9\\nTCP: inuse 2 orphan 0 tw 7 alloc 5\\nUDP: inuse 1 mem 0\\n")
    3
    """
    words = (line.split() for line in text.splitlines())
    return sum(
        int(w[2])
        for w in words
        if len(w) > 2 and w[0] in ("TCP:", "UDP:", "TCP6:", "UDP6:") and w[2].isdigit()
    )


def _sealed(host: Host, pid: int) -> bool | None:
    try:
        found = {m.mountpoint: "ro" in m.options for m in mounts(host, pid)}
    except OSError:
        return None
    return found.get("/proc/sys", found.get("/proc"))
