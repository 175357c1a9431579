"""What a drop means: by its reason and by the function of the kernel that gave the packet up.

Not every one is a fault. What a healthy network drops all the time is ``usual`` (measured on 5.10
to 7.3): the rest of a connection that is over, an answer that a raw socket got a copy of, multicast
that nobody asked for.
"""

from msgspec import Struct


class Cause(Struct, frozen=True, kw_only=True):
    """What a drop means and what to look at next."""

    means: str
    look: str = ""
    usual: bool = False


def _usual(means: str) -> Cause:
    return Cause(means=means, usual=True)


#: Before reasons were told, both the parts of a packet that was taken (skb_release_data()) and what
#: a full queue drops (__dev_xmit_skb()) are given up in one function.
_SOMETHING_OF_A_LIST = _usual(
    "a part of a packet that was taken, or one for which a queue was full: then the interface's"
    " counter of dropped packets grows too"
)

#: Usual whatever the function is.
_USUAL_REASONS = {
    "CONSUMED": _usual("it was taken, not dropped"),
    "QUEUE_PURGE": _usual("it waited in a socket that was closed"),
    "SOCKET_CLOSE": _usual("it waited in a socket that was closed"),
    "TCP_ABORT_ON_DATA": _usual("it came for a connection that its program had closed"),
    "TCP_CLOSE": _usual("it came for a connection that is over"),
    "TCP_OLD_DATA": _usual("its data had arrived before"),
    "TCP_OLD_ACK": _usual("it acknowledged what was acknowledged before"),
    "TCP_OLD_SEQUENCE": _usual("its data had arrived before"),
    "TCP_RESET": _usual("it was a reset, and has been heeded"),
    "TCP_OFOMERGE": _usual("its data had arrived before, out of order"),
    "TCP_RFC7323_PAWS_ACK": _usual("an old acknowledgement"),
    "OTHERHOST": _usual("it was for another machine on the same link"),
    "UNICAST_IN_L2_MULTICAST": _usual("it was for another machine on the same link"),
    "IPV6_NDISC_NS_OTHERHOST": _usual("it asked for another machine on the same link"),
    "UNHANDLED_PROTO": _usual("a protocol that nobody here speaks (STP, LLDP, …)"),
    "DUP_FRAG": _usual("a fragment that had arrived before"),
    "IPV6DISABLED": _usual("IPv6 is switched off here"),
}

#: Usual in these functions alone, without a reason or with one that says nothing; the functions
#: that end a packet's life without a fault on kernels that tell no reason (before 5.17).
_USUAL_FUNCTIONS = {
    "ping_rcv": _usual("the answer to a ping; its program has got a copy"),
    "icmp_rcv": _usual("an ICMP message that was heeded"),
    "icmpv6_rcv": _usual("an ICMPv6 message that was heeded, or asks for nothing"),
    "ip6_mc_input": _usual("IPv6 multicast that nobody here asked for"),
    "igmp_rcv": _usual("a multicast message that was heeded"),
    "igmp6_event_query": _usual("a multicast message that was heeded"),
    "igmp6_event_report": _usual("a multicast message that was heeded"),
    "ip_rcv_finish_core": _usual("broadcast or multicast that nobody here asked for"),
    "ip_mc_output": _usual("multicast that nobody here asked for"),
    "tcp_v4_rcv": _usual("it came for a connection that is over"),
    "tcp_v6_rcv": _usual("it came for a connection that is over"),
    "tcp_v4_do_rcv": _usual("it came for a connection that is over"),
    "tcp_v6_do_rcv": _usual("it came for a connection that is over"),
    "tcp_rcv_established": _usual("an acknowledgement that was heeded"),
    "tcp_rcv_state_process": _usual("a step of a connection's begin or end"),
    "tcp_rcv_synsent_state_process": _usual("a step of a connection's begin"),
    "tcp_check_req": _usual("a step of a connection's begin"),
    "skb_rbtree_purge": _usual("it waited in a socket that was closed"),
    "tcp_ack": _usual("an acknowledgement that was heeded"),
    "tcp_done": _usual("the rest of a connection that is over"),
    "tcp_data_queue": _usual("its data had arrived before"),
    "tcp_validate_incoming": _usual("an old segment, or a reset that was heeded"),
    "sk_stream_kill_queues": _usual("it waited in a socket that was closed"),
    "skb_queue_purge": _usual("it waited in a socket that was closed"),
    "skb_queue_purge_reason": _usual("it waited in a socket that was closed"),
    "inet_sock_destruct": _usual("it waited in a socket that was closed"),
    "tcp_disconnect": _usual("it waited in a socket that was closed"),
    "kfree_skb_list": _SOMETHING_OF_A_LIST,
    "kfree_skb_list_reason": _SOMETHING_OF_A_LIST,
    "packet_rcv": _usual("a copy for a packet socket, which did not want it"),
    "virtio_transport_recv_pkt": _usual("a message between a virtual machine and its host"),
    "arp_process": _usual("an ARP message that was heeded, or asks for another machine"),
    "arp_rcv": _usual("an ARP message for another machine"),
    "ndisc_rcv": _usual("a neighbour message that was heeded"),
    "mld_sendpack": _usual("a multicast report that found no taker"),
    "inet_rtm_getroute": _usual("no packet: somebody asked the kernel for a route"),
    "inet6_rtm_getroute": _usual("no packet: somebody asked the kernel for a route"),
    "br_handle_frame": _usual("a frame that is for the bridge itself, or for nobody behind it"),
}

#: Reasons that say nothing.
_SILENT = ("NOT_SPECIFIED", None)

#: Here a kernel without reasons drops the first packet of a connection that nobody waits for.
_DOORS = ("tcp_v4_rcv", "tcp_v6_rcv")

_FIREWALL = Cause(
    means="a firewall rule dropped it",
    look="the rules of that namespace: nft list ruleset, iptables-save; nft monitor trace names"
    " the very rule",
)

_BY_PLACE = {
    ("NO_SOCKET", "ping_rcv"): _USUAL_FUNCTIONS["ping_rcv"],
    ("NETFILTER_DROP", "nft_do_chain"): Cause(
        means="a rule of nftables (or iptables-nft) dropped it",
        look="nft list ruleset in that namespace; nft monitor trace names the very rule",
    ),
    ("NETFILTER_DROP", "nf_hook_slow"): Cause(
        means="a firewall hook dropped it: a rule of iptables-legacy, or conntrack's table is full",
        look="conntrack is full if nf_conntrack_count has reached nf_conntrack_max and `drop` in"
        " /proc/net/stat/nf_conntrack grows; else iptables-legacy-save",
    ),
    ("IP_INADDRERRORS", "ip_error"): Cause(
        means="it is for another machine, and this one does not forward",
        look="net.ipv4.ip_forward of that namespace, which must be 1",
    ),
    ("NOT_SPECIFIED", "__dev_forward_skb2"): Cause(
        means="it is larger than the MTU at the other end of the wire",
        look="the MTU at both ends of the veth, which must be the same",
    ),
    ("NOT_SPECIFIED", "br_handle_frame_finish"): Cause(
        means="the bridge may not send it back to where it came from",
        look="a published port used from its own container: hairpin mode of the bridge port, or"
        " masquerading of such packets",
    ),
    ("NOT_SPECIFIED", "ip_forward"): Cause(
        means="it may not be forwarded: its time to live has run out, or the route refuses it",
        look="a loop between routers, or a sender with a small TTL",
    ),
}

_BY_REASON = {
    "NO_SOCKET": Cause(
        means="nobody listens on that port there",
        look="the listening sockets of that namespace (ss -lntu): not started, another port, or"
        " 127.0.0.1 only",
    ),
    "SOCKET_RCVBUFF": Cause(
        means="the socket's receive buffer is full: its program does not read fast enough",
        look="what the program waits for; net.core.rmem_max and SO_RCVBUF for bursts",
    ),
    "SOCKET_BACKLOG": Cause(
        means="the socket's backlog is full: it was locked for long while packets came",
        look="the CPU of the program, and net.core.rmem_max",
    ),
    "SOCKET_FILTER": Cause(means="a BPF filter of the socket refused it", look="SO_ATTACH_BPF"),
    "PROTO_MEM": Cause(
        means="the memory for sockets is used up",
        look="net.ipv4.tcp_mem, udp_mem against /proc/net/sockstat; the container's memory limit",
    ),
    "NETFILTER_DROP": _FIREWALL,
    "IP_RPFILTER": Cause(
        means="its source is not to be reached by the interface that it came in by",
        look="net.ipv4.conf.*.rp_filter there, and the route back to the source",
    ),
    "IP_INADDRERRORS": Cause(
        means="its address is not valid there, or it would have to be forwarded",
        look="net.ipv4.ip_forward and the addresses of that namespace",
    ),
    "IP_INNOROUTES": Cause(
        means="there is no route to its destination there",
        look="ip route get ADDRESS in that namespace: the uplink is down, or a route is missing",
    ),
    "IP_OUTNOROUTES": Cause(
        means="there is no route to its destination",
        look="ip route get ADDRESS in that namespace",
    ),
    "IP_LOCALNET": Cause(
        means="an address of 127.0.0.0/8 came in from outside",
        look="what rewrites addresses there; net.ipv4.conf.*.route_localnet",
    ),
    "IP_LOCAL_SOURCE": Cause(
        means="its source is an address of the receiver itself",
        look="an address that was given twice",
    ),
    "IP_INVALID_SOURCE": Cause(means="its source is no address that may send"),
    "IP_INVALID_DEST": Cause(means="its destination is no address that may receive"),
    "IP_INHDR": Cause(means="its IP header is broken", look="what makes or changes it on the way"),
    "IP_CSUM": Cause(means="its IP checksum is wrong", look="checksum offload (ethtool -k)"),
    "TCP_CSUM": Cause(means="its checksum is wrong", look="checksum offload (ethtool -k)"),
    "UDP_CSUM": Cause(means="its checksum is wrong", look="checksum offload (ethtool -k)"),
    "IP_NOPROTO": Cause(means="nobody there speaks its protocol"),
    "XFRM_POLICY": Cause(means="an IPsec policy forbids it", look="ip xfrm policy"),
    "NEIGH_FAILED": Cause(
        means="the next machine did not answer when asked for its link address (ARP)",
        look="whether the gateway or the destination is up and on that link: ip neigh",
    ),
    "NEIGH_QUEUEFULL": Cause(
        means="too many packets wait for the link address of the next machine",
        look="ip neigh, as for NEIGH_FAILED",
    ),
    "NEIGH_CREATEFAIL": Cause(
        means="there is no room for another neighbour",
        look="net.ipv4.neigh.default.gc_thresh3 of the host, dmesg: neighbor table overflow",
    ),
    "NEIGH_DEAD": Cause(means="the entry of its neighbour was removed meanwhile"),
    "QDISC_DROP": Cause(
        means="the queue of the interface is full, or the other end is off",
        look="tc -s qdisc; ip link: NO-CARRIER",
    ),
    "QDISC_OVERLIMIT": Cause(means="the queue of the interface is full", look="tc -s qdisc"),
    "TC_INGRESS": Cause(means="a tc filter dropped it", look="tc filter show dev … ingress"),
    "TC_EGRESS": Cause(means="a tc filter dropped it", look="tc filter show dev … egress"),
    "XDP": Cause(means="an XDP program dropped it", look="ip link show: prog/xdp"),
    "BPF_CGROUP_EGRESS": Cause(
        means="a BPF program of its control group forbids it", look="bpftool cgroup tree"
    ),
    "PKT_TOO_BIG": Cause(
        means="it is larger than the MTU of where it has to go, and may not be cut",
        look="the MTU along the way; whether ICMP \"fragmentation needed\" gets back to the sender",
    ),
    "CPU_BACKLOG": Cause(
        means="the queue of a CPU for received packets is full",
        look="net.core.netdev_max_backlog, column 2 of /proc/net/softnet_stat, who burns the CPU",
    ),
    "BRIDGE_INGRESS_STP_STATE": Cause(
        means="the bridge, or its port, does not forward",
        look="ip link show the bridge: up? bridge link: state forwarding?",
    ),
    "DEV_READY": Cause(means="the interface is off", look="ip link"),
    "FULL_RING": Cause(means="the queue of a tun, tap or veth is full", look="the reader's CPU"),
    "NOMEM": Cause(means="there was no memory for it", look="memory of the machine"),
    "SECURITY_HOOK": Cause(means="a security module forbids it", look="the audit log"),
    "TCP_ZEROWINDOW": Cause(
        means="the program does not read: there is no room in its receive buffer",
        look="what the program waits for",
    ),
    "TCP_OVERWINDOW": Cause(means="it lies beyond what the receiver has room for"),
    "TCP_LISTEN_OVERFLOW": Cause(
        means="the accept queue of the listener is full",
        look="ss -lnt: Recv-Q against Send-Q; the program accepts too slowly",
    ),
    "TCP_INVALID_SEQUENCE": Cause(
        means="its sequence number is not of this connection",
        look="a firewall or NAT that mixes up connections",
    ),
    "TCP_FLAGS": Cause(means="its TCP flags are not allowed at this point"),
    "NO_TX_TARGET": Cause(means="the bridge or tunnel knows no port for it", look="bridge fdb"),
    "LOCAL_MAC": Cause(
        means="its sender has the link address of the receiver",
        look="a link address that was given twice",
    ),
    "FRAG_REASM_TIMEOUT": Cause(
        means="the other fragments of it did not come in time", look="loss of large packets"
    ),
}  # fmt: skip

#: On kernels without reasons, or where none is told: the function alone.
_BY_FUNCTION = {
    "nft_do_chain": _BY_PLACE["NETFILTER_DROP", "nft_do_chain"],
    "nf_hook_slow": _BY_PLACE["NETFILTER_DROP", "nf_hook_slow"],
    "ip_error": Cause(
        means="it cannot be forwarded: forwarding is off, or there is no route",
        look="net.ipv4.ip_forward, and ip route get ADDRESS in that namespace",
    ),
    "ip_forward": _BY_PLACE["NOT_SPECIFIED", "ip_forward"],
    "__udp4_lib_rcv": _BY_REASON["NO_SOCKET"],
    "__udp6_lib_rcv": _BY_REASON["NO_SOCKET"],
    "udp_queue_rcv_one_skb": _BY_REASON["SOCKET_RCVBUFF"],
    "udpv6_queue_rcv_one_skb": _BY_REASON["SOCKET_RCVBUFF"],
    "__udp_queue_rcv_skb": _BY_REASON["SOCKET_RCVBUFF"],
    "neigh_invalidate": _BY_REASON["NEIGH_FAILED"],
    "arp_error_report": _BY_REASON["NEIGH_FAILED"],
    "ndisc_error_report": _BY_REASON["NEIGH_FAILED"],
    "__neigh_event_send": _BY_REASON["NEIGH_QUEUEFULL"],
    "__dev_queue_xmit": _BY_REASON["QDISC_DROP"],
    "enqueue_to_backlog": _BY_REASON["CPU_BACKLOG"],
    "netif_rx_internal": _BY_REASON["CPU_BACKLOG"],
    "__dev_forward_skb": _BY_PLACE["NOT_SPECIFIED", "__dev_forward_skb2"],
    "__dev_forward_skb2": _BY_PLACE["NOT_SPECIFIED", "__dev_forward_skb2"],
    "br_handle_frame_finish": _BY_PLACE["NOT_SPECIFIED", "br_handle_frame_finish"],
    "tcp_conn_request": _BY_REASON["TCP_LISTEN_OVERFLOW"],
    "veth_xmit": _BY_REASON["DEV_READY"],
}

_UNKNOWN = Cause(means="", look="the source of that function")


def always_usual(reason: str | None) -> bool:
    """Whether a reason is usual whatever the function is, so that nobody need look it up."""
    return reason in _USUAL_REASONS


def cause(reason: str | None, function: str, *, opens: bool = False) -> Cause:
    """What a drop means; ``reason`` is ``None`` on a kernel that tells none. ``opens``: it is the
    first packet of a TCP connection.

    >>> cause("NO_SOCKET", "ping_rcv").usual, cause("NO_SOCKET", "tcp_v4_rcv").usual
    (True, False)
    >>> cause("NOT_SPECIFIED", "tcp_v4_rcv").usual, cause("IP_RPFILTER", "ip_rcv_finish_core").usual
    (True, False)
    """
    plain = function.partition(".")[0]
    if reason not in _SILENT:
        known = _BY_PLACE.get((str(reason), plain)) or _USUAL_REASONS.get(str(reason))
        return known or _BY_REASON.get(str(reason)) or _UNKNOWN
    if opens and plain in _DOORS:
        return _BY_REASON["NO_SOCKET"]
    known = _BY_PLACE.get(("NOT_SPECIFIED", plain)) or _BY_FUNCTION.get(plain)
    return known or _USUAL_FUNCTIONS.get(plain) or _UNKNOWN
