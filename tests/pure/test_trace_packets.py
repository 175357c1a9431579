"""``whybox trace packets``: decoding, what is a fault, verdicts, and the view, on literal data."""

import struct
from xml.etree import ElementTree

import pytest
from msgspec import structs

from whybox.kernel import dropreasons, drops
from whybox.kernel.conntrackdrops import Tables
from whybox.kernel.dropcauses import cause
from whybox.kernel.drops import Merged, along, merged
from whybox.kernel.hops import Around, Hop
from whybox.kernel.sensors import packets as sensor
from whybox.kernel.sensors.packets import Dropped, Pair, Place, Repeated, State, packed
from whybox.trace.packets import Again, Answer, Broken, Lost
from whybox.trace.question import Answered, Happened
from whybox.views import hops as picture
from whybox.views.trace import packets as view
from whybox.views.trace import text

NASTY = "<script>alert('&\"')</script>\x1b[31m\n\u202e\ufffe]]>"
CONTAINER, NODE, OTHER = 100, 200, 300

ETH0 = Hop(
    stage="container", namespace="the container", inode=CONTAINER, interface="eth0", ifindex=2
)
BRIDGE = Hop(stage="bridge", namespace="the host", inode=NODE, interface="br0", ifindex=3)
AWAY = Hop(stage="elsewhere", namespace="docker 4f1c", inode=OTHER, interface="eth0", ifindex=2)

UDP = sensor.Flow(
    source="10.0.0.2",
    destination="10.0.1.2",
    source_port=4000,
    destination_port=53,
    ethertype=0x0800,
    protocol=17,
)
PLACE = Place(
    location=0xFFFF0010,
    net=NODE,
    ifindex=3,
    reason=7,
    ethertype=0x0800,
    protocol=17,
    why=sensor.FROM_IT,
)
SUM = sensor.Sum(
    place=PLACE, packets=31, bytes=310, first_ns=10, last_ns=20, flow=UDP, device="br0"
)


def place(**changed: object) -> Merged:
    known = Merged(
        hop=BRIDGE,
        reason="NETFILTER_DROP",
        function="nft_do_chain",
        ethertype=0x0800,
        protocol=17,
        why=sensor.FROM_IT,
        cause=cause("NETFILTER_DROP", "nft_do_chain"),
    )
    return structs.replace(known, **changed)


def answer(**changed: object) -> Answer:
    empty = Answer(
        watched=True,
        path=(ETH0, BRIDGE),
        dropped=0,
        drops=(),
        usual_dropped=0,
        usual=(),
        uncounted=0,
        connections=(),
        more_connections=0,
        resets=(),
        more_resets=0,
        counters=(),
        conclusions=(),
    )
    return structs.replace(empty, **changed)


def btf(enumerations: dict[str, dict[str, int]]) -> bytes:
    """Type information that holds these enumerations after a structure of no interest."""
    names = bytearray(b"\0")

    def named(name: str) -> int:
        names.extend(name.encode() + b"\0")
        return len(names) - len(name) - 1

    types = struct.pack("=III", named("nothing"), 4 << 24, 8)
    for name, members in enumerations.items():
        types += struct.pack("=III", named(name), 6 << 24 | len(members), 4)
        for member, number in members.items():
            types += struct.pack("=II", named(member), number)
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return head + types + bytes(names)


def test_reasons_are_what_this_kernel_calls_them() -> None:
    raw = btf(
        {
            "skb_drop_reason": {
                "SKB_NOT_DROPPED_YET": 0,
                "SKB_CONSUMED": 1,
                "SKB_DROP_REASON_NOT_SPECIFIED": 2,
                "SKB_DROP_REASON_NO_SOCKET": 3,
                "SKB_DROP_REASON_MAX": 4,
                "SKB_DROP_REASON_SUBSYS_MASK": 0xFFFF0000,
            },
            "skb_drop_reason_subsys": {
                "SKB_DROP_REASON_SUBSYS_CORE": 0,
                "SKB_DROP_REASON_SUBSYS_OPENVSWITCH": 3,
            },
        }
    )
    known = dropreasons.reasons(raw)
    assert known == {1: "CONSUMED", 2: "NOT_SPECIFIED", 3: "NO_SOCKET", 3 << 16: "OPENVSWITCH"}
    assert dropreasons.name(known, 3 << 16 | 9) == "OPENVSWITCH 9"
    assert dropreasons.name(known, 9 << 16 | 1) == "reason of subsystem 1"
    assert dropreasons.name(known, 99) == "reason 99"


@pytest.mark.parametrize("raw", [b"", b"\x9f\xeb", b"\0" * 64, btf({})])
def test_a_kernel_without_reasons_has_none(raw: bytes) -> None:
    assert dropreasons.reasons(raw) == {}


def test_type_information_that_is_cut_short_does_no_harm() -> None:
    whole = btf({"skb_drop_reason": {f"SKB_DROP_REASON_{n}": n for n in range(20)}})
    for size in range(len(whole)):
        dropreasons.reasons(whole[:size])


def raw_flow(*, known: int = 3, ethertype: int = 0x0800, protocol: int = 17) -> bytes:
    ends = packed("10.0.0.2") + packed("10.0.1.2")
    return ends + struct.pack("=HHHBB", 4000, 53, ethertype, protocol, known)


def raw_place() -> bytes:
    return struct.pack("=QIIIHBB", 0xFFFF0010, NODE, 3, 7, 0x0800, 17, sensor.FROM_IT)


def test_a_dropped_packet_is_decoded() -> None:
    device = b"br0".ljust(16, b"\0")
    raw = struct.pack("=QII", 5, 1, 38) + raw_place() + raw_flow() + device
    told = sensor.told(raw)
    assert told == Dropped(at_ns=5, place=PLACE, flow=UDP, bytes=38, device="br0")


def test_headers_that_tell_nothing_are_none() -> None:
    device = b"\xff\x1b".ljust(16, b"\0")
    raw = struct.pack("=QII", 5, 1, 38) + raw_place() + raw_flow(known=0) + device
    told = sensor.told(raw)
    assert isinstance(told, Dropped)
    assert (told.flow.source, told.flow.source_port) == (None, None)
    assert told.device == "\\xff\x1b"  # the view makes it printable


PAIR = Pair(net=CONTAINER, local="10.0.0.2", local_port=4000, remote="fe80::1", remote_port=80)
RAW_PAIR = struct.pack("=IHH", CONTAINER, 4000, 80) + packed("10.0.0.2") + packed("fe80::1")
STATE = State(
    srtt_us=900,
    retransmitted=60,
    reordered=0,
    duplicates=1,
    early=0,
    sent=1000,
    state=1,
    in_a_row=2,
    reordering=3,
)


def test_a_retransmit_and_a_reset_are_decoded() -> None:
    state = struct.pack("=9I", 900, 60, 0, 1, 0, 1000, 1, 2, 3)
    again = sensor.told(struct.pack("=QII", 5, 2, 0) + RAW_PAIR + state + b"\0" * 8)
    assert again == Repeated(at_ns=5, pair=PAIR, state=STATE)
    reset = sensor.told(struct.pack("=QII", 6, 3, 0) + RAW_PAIR + struct.pack("=II", 1, 8))
    assert reset == sensor.Reset(at_ns=6, pair=PAIR, sent=True, reason=8, count=1)


@pytest.mark.parametrize(
    ("reason", "function", "usual"),
    [
        ("NO_SOCKET", "ping_rcv", True),
        ("NO_SOCKET", "__udp4_lib_rcv", False),
        ("NO_SOCKET", "tcp_v4_rcv", False),
        ("QUEUE_PURGE", "sk_stream_kill_queues", True),
        ("TCP_OLD_DATA", "tcp_data_queue", True),
        ("NOT_SPECIFIED", "ip6_mc_input", True),
        ("NOT_SPECIFIED", "ip_rcv_finish_core", True),
        ("IP_RPFILTER", "ip_rcv_finish_core", False),
        ("NOT_SPECIFIED", "br_handle_frame_finish", False),
        ("NOT_SPECIFIED", "somewhere_else", False),
        ("SOMETHING_NEW", "tcp_v4_rcv", False),
        (None, "tcp_v4_rcv", True),
        (None, "__udp4_lib_rcv.isra.0", False),
        (None, "ip_error", False),
        ("NOT_SPECIFIED", "inet_rtm_getroute", True),
    ],
)
def test_what_is_usual_is_told_by_reason_and_function(
    reason: str | None, function: str, usual: bool
) -> None:
    assert cause(reason, function).usual is usual


def test_without_a_reason_the_first_packet_of_a_connection_found_nobody_listening() -> None:
    assert not cause(None, "tcp_v4_rcv", opens=True).usual
    assert "listens" in cause(None, "tcp_v4_rcv", opens=True).means


def test_every_cause_that_is_a_fault_says_what_it_means() -> None:
    for reason, function in (("NETFILTER_DROP", "nf_hook_slow"), ("PKT_TOO_BIG", "ip_forward")):
        found = cause(reason, function)
        assert found.means
        assert found.look


def test_drops_are_merged_and_come_in_the_order_of_the_hops() -> None:
    inner = place(hop=ETH0, function="ip_error")
    last = place(hop=AWAY, reason="NO_SOCKET", cause=cause("NO_SOCKET", "x"))
    noise = place(cause=cause("NOT_SPECIFIED", "ip6_mc_input"))
    later = structs.replace(SUM, packets=2, bytes=20, first_ns=5, last_ns=90)
    faults, usual = merged(
        [(last, SUM), (place(), SUM), (place(), later), (inner, SUM), (noise, later)],
        {inner: drops.flow(structs.replace(UDP, destination_port=99))},
    )
    assert [drop.hop for drop in faults] == [ETH0, BRIDGE, AWAY]
    assert [drop.packets for drop in faults] == [31, 33, 31]
    assert (faults[1].first_ns, faults[1].last_ns, faults[1].bytes) == (5, 90, 330)
    assert faults[0].example.destination_port == 99
    assert [drop.packets for drop in usual] == [2]


def test_the_path_has_hops_without_drops_and_drops_beside_the_path() -> None:
    faults, _ = merged([(place(hop=AWAY), SUM), (place(), SUM)], {})
    seen = [structs.replace(hop, namespace="") for hop in (ETH0, BRIDGE)]
    names = {CONTAINER: "the container", NODE: "the host"}
    assert along(seen, faults, names.__getitem__) == (ETH0, BRIDGE, AWAY)


def test_an_interface_is_a_hop_by_where_it_is() -> None:
    known = Around(
        net=CONTAINER, shared=False, wires=frozenset({(NODE, 7)}), bridges=frozenset({(NODE, 3)})
    )
    asked = [(CONTAINER, 0), (NODE, 7), (NODE, 3), (NODE, 9), (OTHER, 7), (0, 0)]
    stages = ["container", "wire", "bridge", "host", "elsewhere", "elsewhere"]
    assert [known.stage(net, ifindex) for net, ifindex in asked] == stages


def test_a_received_segment_without_a_namespace_is_where_its_receiver_is() -> None:
    lost = structs.replace(PLACE, net=0, protocol=6, why=sensor.TO_IT)
    assert drops.settled(lost, CONTAINER).net == CONTAINER
    assert drops.settled(structs.replace(lost, why=sensor.FROM_IT), CONTAINER).net == 0
    assert drops.settled(PLACE, CONTAINER) == PLACE


def test_a_full_table_is_told_from_a_rule_by_its_own_count(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([{NODE: 5}, {NODE: 5}, {NODE: 9}])
    monkeypatch.setattr(Tables, "_read", lambda self: next(counts))
    faults, _ = merged([(place(function="nf_hook_slow"), SUM), (place(), SUM)], {})
    tables = Tables({NODE: "/x"})
    first = {drop.function: drop.means for drop in tables.judged(faults)}
    then = {drop.function: drop.means for drop in tables.judged(faults)}
    assert "was not full" in first["nf_hook_slow"]
    assert "is full" in then["nf_hook_slow"]
    assert first["nft_do_chain"] == then["nft_do_chain"]


def test_icmp_has_no_ports_but_a_type_and_a_code() -> None:
    seen = structs.replace(UDP, protocol=1, source_port=3 << 8 | 4, destination_port=0)
    told = drops.flow(seen)
    assert (told.protocol, told.icmp_type, told.icmp_code) == ("ICMP", 3, 4)
    assert told.source_port is told.destination_port is None


def test_the_view_tells_hops_causes_and_what_to_look_at() -> None:
    faults, usual = merged(
        [(place(), SUM), (place(cause=cause("NOT_SPECIFIED", "ip6_mc_input")), SUM)], {}
    )
    lines = view.answer(answer(dropped=31, drops=faults, usual_dropped=31, usual=usual))
    shown = "\n".join(lines)
    assert "31 packets dropped" in shown
    assert "at br0 of the host, the bridge of its wire" in shown
    assert "NETFILTER_DROP in nft_do_chain" in shown
    assert "10.0.0.2:4000 → 10.0.1.2:53" in shown
    assert "look at: nft list ruleset" in shown
    assert "besides, 31 packets as any healthy network drops" in shown


def test_the_view_of_nothing_is_one_sentence() -> None:
    assert view.answer(answer()) == ["no packet of it was dropped, but for what is usual"]


def test_events_are_one_line_each() -> None:
    told: list[Lost | Again | Broken] = [
        Lost(
            at_ns=1_500_000_000,
            namespace="the host",
            interface="br0",
            reason=None,
            function="ip_error",
            flow=drops.flow(structs.replace(UDP, source="fe80::2", destination="fe80::1")),
            bytes=38,
        ),
        Again(at_ns=5, local="10.0.0.2:1", remote="10.0.1.2:80", state="established", in_a_row=2),
        Broken(at_ns=5, local="10.0.0.2:1", remote="10.0.1.2:80", sent=True, reason="NO_SOCKET"),
    ]
    lines = [view.event(one) for one in told]
    assert lines[0].endswith("at br0 of the host: ip_error, 38 bytes")
    assert "[fe80::2]:4000 → [fe80::1]:53" in lines[0]
    assert "2 timeouts in a row" in lines[1]
    assert lines[2].endswith("reset sent 10.0.0.2:1 ↔ 10.0.1.2:80: NO_SOCKET")


def test_names_can_do_no_harm() -> None:
    hop = structs.replace(BRIDGE, interface=NASTY, namespace=NASTY)
    faults, _ = merged([(place(hop=hop, function=NASTY), SUM)], {})
    whole = answer(path=(ETH0, hop), dropped=31, drops=faults)
    event = Lost(
        at_ns=1,
        namespace=NASTY,
        interface=NASTY,
        reason=NASTY,
        function=NASTY,
        flow=drops.flow(UDP),
        bytes=1,
    )
    for told in (Answered(answer=whole), Happened(event=event)):
        for line in text("packets", told):
            assert not {"\x1b", "\n", "\u202e"} & set(line)
    drawn = view.PICTURES["svg"](whole, NASTY)
    root = ElementTree.fromstring(drawn)
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        "svg",
        "rect",
        "text",
        "title",
        "path",
    }
    assert "\x1b" not in drawn
    assert "\ufffe" not in drawn


def test_the_picture_has_a_box_for_each_hop_and_the_drops_in_red() -> None:
    faults, _ = merged([(place(), SUM)], {})
    drawn = view.PICTURES["svg"](answer(dropped=31, drops=faults), "packets of web")
    words = ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter()]
    assert "eth0" in words
    assert "br0" in words
    assert "✕ 31 dropped" in words
    assert drawn.count('stroke="#dc2626"') == 1
    assert "http" not in drawn.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_many_hops_and_none_are_drawn_as_well() -> None:
    box = picture.Box(title="eth0", below="x", stage="host", drops=((1, "a"),) * 50)
    for boxes in ((), (box,) * 100):
        ElementTree.fromstring(picture.svg(boxes, "t" * 1000, 5))
