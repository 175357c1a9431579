"""The judge of network/packets_lost on literal ways."""

import struct

import msgspec
import pytest
from msgspec import structs

from whybox.cases.network.packets_lost.probe import Observation, judge
from whybox.change import HostSysctl, InProgram, LinkMtu, NoQueue
from whybox.kernel import qdisc
from whybox.kernel.losses import CONNTRACK
from whybox.kernel.netlink import attribute
from whybox.kernel.pathloss import Drop, Hop, Look, Watched, ever_lost
from whybox.kernel.qdisc import Queue
from whybox.kernel.socketowner import Owner, Owners
from whybox.kernel.udpdrops import UdpSocket, dropping
from whybox.model import Certainty, Finding, Severity, Verdict

ETH0 = Hop(
    stage="container",
    namespace="the container",
    net=1,
    interface="eth0",
    up=True,
    mtu_bytes=1500,
    received=100,
    sent=100,
    receive_dropped=0,
    send_dropped=0,
    errors=0,
    queue=None,
)
VETH = structs.replace(ETH0, stage="wire", namespace="the host", net=2, interface="veth7")
UPLINK = structs.replace(VETH, stage="host", interface="ens3")
TBF = Queue(kind="tbf", sent=1000, drops=50, waiting=0)
UNSEEN = Watched(reason="no counter of its way ever told of a loss")
DROP = Drop(
    stage="host",
    namespace="the host",
    interface="ens3",
    reason="QDISC_DROP",
    function="__dev_queue_xmit",
    protocol="UDP",
    packets=40,
    means="the queue of the interface is full",
    look="tc -s qdisc",
    example="10.0.0.2 to 10.9.9.9:53",
)


def seen(
    *hops: tuple[Hop, Hop], watched: Watched = UNSEEN, more: dict[str, int] | None = None
) -> Observation:
    ways = hops or ((ETH0, structs.replace(ETH0, received=200, sent=200)),)
    return Observation(
        before=Look(at_ns=0, hops=tuple(old for old, _ in ways), counters={"Tcp.OutSegs": 0}),
        after=Look(
            at_ns=10**9,
            hops=tuple(new for _, new in ways),
            counters={"Tcp.OutSegs": 0} | (more or {}),
        ),
        watched=watched,
        max_backlog=1000,
    )


def queued(hop: Hop, dropped: int, sent: int, kind: str = "tbf") -> tuple[Hop, Hop]:
    old = structs.replace(TBF, kind=kind)
    new = structs.replace(old, drops=old.drops + dropped, sent=old.sent + sent)
    return structs.replace(hop, queue=old), structs.replace(hop, queue=new)


def watched(*drops: Drop) -> Watched:
    return Watched(drops=drops)


def change(finding: Finding) -> object:
    return next((cure.change for cure in finding.cures if cure.change is not None), None)


def test_an_observation_survives_a_recording() -> None:
    one = seen(queued(ETH0, 30, 70), watched=watched(DROP))
    assert msgspec.json.decode(msgspec.json.encode(one), type=Observation) == one


def test_nothing_lost_is_clear_and_says_of_how_many() -> None:
    finding = judge(seen())
    assert finding.verdict is Verdict.CLEAR
    assert "Of 200 packets" in finding.summary


def test_a_full_queue_of_its_own_interface() -> None:
    finding = judge(seen(queued(ETH0, 30, 70)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert finding.certainty is Certainty.CONFIRMED
    assert "30 packets were lost in the queue (tbf) of eth0" in finding.summary
    assert "30.0%" in finding.summary
    assert change(finding) == NoQueue("eth0")


def test_a_full_queue_at_the_hosts_end_is_the_hosts_to_change() -> None:
    finding = judge(seen(queued(VETH, 30, 9_970)))
    assert finding.severity is Severity.WARNING
    assert change(finding) == NoQueue("veth7", in_container=False)


@pytest.mark.parametrize(("dropped", "sent"), [(9, 100), (10, 9_991), (0, 100)])
def test_a_few_are_no_trouble(dropped: int, sent: int) -> None:
    assert judge(seen(queued(ETH0, dropped, sent))).verdict is Verdict.CLEAR


def test_ten_of_ten_thousand_are() -> None:
    assert judge(seen(queued(ETH0, 10, 9_990))).verdict is Verdict.FOUND


def test_a_queue_that_signals_by_dropping_may_drop_more() -> None:
    assert judge(seen(queued(ETH0, 150, 9_850, "fq_codel"))).verdict is Verdict.CLEAR
    assert judge(seen(queued(ETH0, 250, 9_750, "fq_codel"))).verdict is Verdict.FOUND


def test_a_link_without_carrier_is_a_broken_path() -> None:
    old, new = queued(ETH0, 30, 0)
    assert judge(seen((old, structs.replace(new, up=False)))).verdict is Verdict.CLEAR
    dead = structs.replace(UPLINK, up=False)
    assert judge(seen((dead, dead), watched=watched(DROP))).verdict is Verdict.CLEAR


def test_the_uplink_is_everybodys() -> None:
    uplink = queued(UPLINK, 60, 40)
    assert judge(seen(uplink)).certainty is Certainty.LIKELY
    assert judge(seen(uplink, watched=watched())).verdict is Verdict.CLEAR
    mine = judge(seen(uplink, watched=watched(DROP)))
    assert (mine.verdict, mine.certainty) == (Verdict.FOUND, Certainty.CONFIRMED)
    assert "40 packets" in mine.summary
    assert change(mine) is None


def test_a_backlog_is_the_whole_machines() -> None:
    more = {"softnet dropped": 500}
    likely = judge(seen(more=more))
    assert (likely.verdict, likely.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert change(likely) == HostSysctl("net.core.netdev_max_backlog", "4000")
    assert judge(seen(watched=watched(), more=more)).verdict is Verdict.CLEAR
    backlog = structs.replace(DROP, reason="CPU_BACKLOG", function="enqueue_to_backlog")
    mine = judge(seen(watched=watched(backlog), more=more))
    assert mine.certainty is Certainty.CONFIRMED
    assert "40 packets" in mine.summary


def test_a_program_that_does_not_read() -> None:
    deaf = UdpSocket(port=53, inode=9, drops=40)
    owners = Owners(of={9: Owner(pid=7, comm="dnsd", stopped=False)}, complete=True, frozen=False)
    counts = {"Udp.RcvbufErrors": 40, "Udp.InDatagrams": 60}
    finding = judge(structs.replace(seen(more=counts), udp=(deaf,), owners=owners))
    assert "UDP port 53 of dnsd (pid 7), 40.0%" in finding.summary
    assert isinstance(change(finding), InProgram)
    nobody = structs.replace(owners, of={})
    theirs = judge(structs.replace(seen(more=counts), udp=(deaf,), owners=nobody))
    assert theirs.verdict is Verdict.CLEAR


def test_a_wire_whose_other_end_takes_less() -> None:
    own = structs.replace(ETH0, send_dropped=20, sent=120)
    far = structs.replace(VETH, mtu_bytes=1400)
    there = structs.replace(far, receive_dropped=20)
    finding = judge(seen((ETH0, own), (far, there)))
    assert "its MTU is 1400, and that of eth0 1500" in finding.summary
    assert change(finding) == LinkMtu("veth7", 1500, in_container=False)
    same = structs.replace(there, mtu_bytes=1500)
    assert judge(seen((ETH0, own), (VETH, same))).verdict is Verdict.CLEAR
    alone = judge(seen((ETH0, own), (far, far)))
    assert alone.verdict is Verdict.CLEAR


@pytest.mark.parametrize("reason", ["NETFILTER_DROP", "IP_RPFILTER", "TC_EGRESS", "PKT_TOO_BIG"])
def test_a_rule_drops_each_of_its_kind(reason: str) -> None:
    few = structs.replace(DROP, reason=reason, function="nft_do_chain", packets=5)
    finding = judge(seen(watched=watched(few)))
    assert finding.verdict is Verdict.FOUND
    assert "nft_do_chain() at ens3 (the host)" in finding.summary
    assert judge(seen(watched=watched(structs.replace(few, packets=4)))).verdict is Verdict.CLEAR


@pytest.mark.parametrize(
    "reason", ["NO_SOCKET", "NEIGH_FAILED", "IP_INNOROUTES", "IP_INADDRERRORS", "TCP_FLAGS"]
)
def test_what_is_refused_or_finds_nobody_is_not_lost(reason: str) -> None:
    many = structs.replace(DROP, reason=reason, packets=1000, means="nobody listens")
    finding = judge(seen(watched=watched(many)))
    assert finding.verdict is Verdict.CLEAR
    assert "no loss on the way: nobody listens" in finding.summary


def test_a_full_table_of_conntrack_is_another_case() -> None:
    full = structs.replace(
        DROP, reason="NETFILTER_DROP", function="nf_hook_slow", means=CONNTRACK, packets=1000
    )
    assert judge(seen(watched=watched(full))).verdict is Verdict.CLEAR


def test_a_kernel_without_reasons_tells_by_the_function() -> None:
    old = structs.replace(DROP, reason=None, function="__udp_queue_rcv_skb")
    assert judge(seen(watched=watched(old))).verdict is Verdict.FOUND
    unknown = structs.replace(DROP, reason="NOT_SPECIFIED", function="tcp_v4_rcv")
    assert judge(seen(watched=watched(unknown))).verdict is Verdict.CLEAR


def test_what_no_hop_lost_was_lost_beyond() -> None:
    more = {"Tcp.RetransSegs": 100, "Tcp.OutSegs": 5_000}
    finding = judge(seen(more=more))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "beyond this host" in finding.summary
    assert "beyond" not in judge(seen(queued(ETH0, 30, 70), more=more)).summary


@pytest.mark.parametrize(
    "besides",
    [
        {"TcpExt.TCPDSACKRecv": 95},
        {"TcpExt.TCPSACKReorder": 50, "TcpExt.TCPDSACKRecv": 60},
        {"TcpExt.TCPSynRetrans": 60},
        {"Tcp.OutSegs": 50_000},
    ],
    ids=["too soon", "reordered", "connecting", "few"],
)
def test_what_was_sent_again_without_being_lost(besides: dict[str, int]) -> None:
    more = {"Tcp.RetransSegs": 100, "Tcp.OutSegs": 5_000} | besides
    assert judge(seen(more=more)).verdict is Verdict.CLEAR


def test_on_the_hosts_network_nothing_can_be_told() -> None:
    assert judge(structs.replace(seen(), shared=True)).verdict is Verdict.UNKNOWN


def test_what_cannot_be_seen_is_unknown() -> None:
    finding = judge(structs.replace(seen(), partly="the host's end could not be looked at"))
    assert finding.verdict is Verdict.UNKNOWN
    assert "the host's end" in finding.summary
    lost = structs.replace(seen(queued(ETH0, 30, 70)), partly="the host's end")
    assert judge(lost).verdict is Verdict.FOUND


def test_watching_is_worth_it_where_something_was_ever_lost() -> None:
    def look(hop: Hop, **counters: int) -> Look:
        return Look(at_ns=0, hops=(hop,), counters=counters)

    assert not ever_lost(look(ETH0))
    assert ever_lost(look(structs.replace(ETH0, queue=TBF)))
    assert not ever_lost(look(structs.replace(ETH0, queue=structs.replace(TBF, drops=0))))
    assert ever_lost(look(structs.replace(ETH0, send_dropped=1)))
    assert not ever_lost(look(structs.replace(UPLINK, send_dropped=1)))
    for counters, worth in (
        ({"Udp.RcvbufErrors": 1}, True),
        ({"Tcp.RetransSegs": 2, "Tcp.OutSegs": 1_999}, True),
        ({"Tcp.RetransSegs": 2, "Tcp.OutSegs": 2_000}, False),
        ({"Udp.OutDatagrams": 10, "Udp.InDatagrams": 0}, True),
        ({"Udp.OutDatagrams": 10, "Udp.InDatagrams": 1}, False),
        ({"softnet dropped": 2, "softnet taken": 19_999}, True),
        ({"softnet dropped": 2, "softnet taken": 20_000}, False),
    ):
        assert ever_lost(Look(at_ns=0, hops=(), counters=counters)) is worth


def test_a_queue_as_the_kernel_tells_it() -> None:
    basic = attribute(1, struct.pack("=QI", 5000, 7))
    stats = attribute(7, basic + attribute(3, struct.pack("=5I", 3, 900, 11, 0, 5)))
    head = struct.pack("=BxxxiIII", 0, 2, 1, 0xFFFFFFFF, 0)
    found = qdisc.queue(head + attribute(1, b"tbf\0") + stats)
    assert found == Queue(kind="tbf", sent=7, drops=11, waiting=3)
    assert qdisc.queue(head + attribute(1, b"noqueue\0") + stats) is None
    assert qdisc.queue(head + attribute(1, b"tbf\0")) is None


def test_sockets_that_dropped_something_meanwhile() -> None:
    old = (UdpSocket(port=1, inode=1, drops=5), UdpSocket(port=2, inode=2, drops=0))
    new = (
        UdpSocket(port=1, inode=1, drops=5),
        UdpSocket(port=2, inode=2, drops=3),
        UdpSocket(port=3, inode=3, drops=9),
    )
    assert [(one.port, one.drops) for one in dropping(old, new)] == [(3, 9), (2, 3)]
