"""``whybox trace packets``: 31 packets at a known hop; what is no fault; a storm."""

import os
import socket
import time
from functools import partial
from pathlib import Path

import pytest
from msgspec import structs

from tests.live.flows import (
    GATEWAY,
    INSIDE,
    MANY,
    NOBODY,
    PORT,
    REMOTE,
    UPLINK,
    boxed,
    counted,
    inode,
    inside,
    node,
    run,
    send,
    symbols,
    until,
    wired,
)
from tests.live.tracing import PATIENCE_SECONDS, Trace, asked
from whybox.kernel import dropreasons
from whybox.kernel.bpf import objects
from whybox.kernel.drops import Drop
from whybox.kernel.host import Host
from whybox.kernel.netns import call_in
from whybox.kernel.target import Target
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.trace.packets import QUESTION, Answer, Lost
from whybox.trace.question import Options


@pytest.fixture(autouse=True)
def _symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whybox.kernel.dropsites.KernelSymbols", symbols)


def only(answer: Answer) -> Drop:
    assert len(answer.drops) == 1, answer.drops
    assert answer.dropped == answer.drops[0].packets
    return answer.drops[0]


def check(drop: Drop, reason: str, *functions: str) -> None:
    """The reason, where this kernel tells one; the function of the kernel, if any is given."""
    known = dropreasons.read()
    assert drop.reason == (
        reason if reason in known.values() else None if not known else drop.reason
    )
    assert not functions or drop.function.partition(".")[0] in functions
    assert drop.packets == MANY
    assert drop.protocol == "UDP"


def test_31_to_a_closed_port_of_the_peer_are_dropped_there() -> None:
    with boxed() as box:
        with asked("packets", box.target()) as trace:
            send(box, REMOTE)
        drop = only(trace.answer)
        check(drop, "NO_SOCKET", "__udp4_lib_rcv", "udp_rcv")
        assert drop.hop.stage == "elsewhere"
        assert drop.hop.interface == "eth0"
        assert drop.hop.inode not in (inode(node(box)), inode(inside(box)))
        assert drop.whose == "from it"
        assert (drop.example.source, drop.example.destination) == (INSIDE, REMOTE)
        assert drop.example.destination_port == PORT
        assert drop.bytes == MANY * 18  # the receiver has taken IP's header off, not UDP's
        assert "nobody listens" in drop.means


def test_single_drops_are_told_as_they_happen() -> None:
    with boxed() as box:
        with asked("packets", box.target()) as trace:
            send(box, REMOTE, many=3)
            until(lambda: len(trace.of(Lost)) == 3, "three packets were dropped")
        first = trace.of(Lost)[0]
        assert first.flow.source == INSIDE
        assert first.flow.destination_port == PORT
        assert first.bytes == 18


def test_31_that_the_host_does_not_forward_are_dropped_at_its_bridge() -> None:
    with boxed(forward=False) as box:
        with asked("packets", box.target()) as trace:
            send(box, REMOTE)
        drop = only(trace.answer)
        check(drop, "IP_INADDRERRORS", "ip_error")
        assert (drop.hop.stage, drop.hop.interface) == ("bridge", "br0")
        assert drop.hop.inode == inode(node(box))
        hops = [(hop.stage, hop.interface) for hop in trace.answer.path]
        assert hops == [("container", "eth0"), ("wire", "veth0"), ("bridge", "br0")]


def test_31_that_a_firewall_drops_on_their_way_through_the_host() -> None:
    with boxed() as box:
        run(node(box), "iptables", "-A", "FORWARD", "-p", "udp", "-j", "DROP")
        with asked("packets", box.target()) as trace:
            send(box, REMOTE)
        drop = only(trace.answer)
        check(drop, "NETFILTER_DROP")
        assert (drop.hop.stage, drop.hop.interface) == ("bridge", "br0")
        assert "dropped it" in drop.means or not dropreasons.read()


def test_31_that_a_firewall_drops_before_they_leave_were_at_no_interface() -> None:
    with boxed() as box:
        run(inside(box), "iptables", "-A", "OUTPUT", "-p", "udp", "-j", "DROP")
        with asked("packets", box.target()) as trace:
            send(box, REMOTE)
        drop = only(trace.answer)
        check(drop, "NETFILTER_DROP")
        assert (drop.hop.stage, drop.hop.interface) == ("container", None)
        assert drop.hop.inode == inode(inside(box))


def test_31_for_which_a_socket_has_no_room() -> None:
    """The buffer is full before the trace: each of the 31 is dropped, as the kernel counts."""
    with boxed() as box:
        reader = call_in(inside(box), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            reader.bind((INSIDE, PORT))
            send(box, INSIDE, many=200)
            before = counted(box, "Udp.RcvbufErrors")
            assert before > 0
            with asked("packets", box.target()) as trace:
                send(box, INSIDE)
            assert counted(box, "Udp.RcvbufErrors") - before == MANY
        drop = only(trace.answer)
        check(drop, "SOCKET_RCVBUFF")
        assert (drop.hop.stage, drop.hop.interface) == ("container", "lo")
        assert "does not read" in drop.means
        gained = {one.name: one.by for one in trace.answer.counters}
        assert gained["Udp.RcvbufErrors"] == MANY


def test_31_of_its_connection_under_the_address_of_the_host() -> None:
    """After masquerading nothing in a packet is the container's; conntrack remembers it."""
    with boxed() as box:
        run(
            node(box), "iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "up0", "-j", "MASQUERADE"
        )
        with asked("packets", box.target()) as trace:
            if not knows_conntrack():
                pytest.skip("this kernel does not tell the types of its module nf_conntrack")
            send(box, NOBODY)
            until(lambda: trace.of(Lost), "nobody answered for the address")
        drop = only(trace.answer)
        check(drop, "NEIGH_FAILED")
        assert (drop.hop.stage, drop.hop.interface) == ("host", "up0")
        assert (drop.example.source, drop.example.destination) == (UPLINK, NOBODY)
        assert "NAT" in drop.whose


def knows_conntrack() -> bool:
    files = Path("/sys/kernel/btf").iterdir()
    return any(b"\0nf_conntrack_tuple_hash\0" in file.read_bytes() for file in files)


def test_healthy_traffic_is_told_to_be_healthy() -> None:
    def fetching() -> None:
        for _ in range(20):
            with socket.create_connection((INSIDE, PORT)) as sock:
                assert sock.recv(10) == b"ok\n"

    with Box("trace-packets") as box:
        box.network(wired())
        box.start(workload.serve("0.0.0.0", PORT))
        with asked("packets", box.target()) as trace:
            call_in(node(box), fetching, PATIENCE_SECONDS)
        answer = trace.answer
        assert answer.drops == (), answer.drops
        assert answer.dropped == 0
        assert answer.usual_dropped == sum(drop.packets for drop in answer.usual)
        assert trace.of(Lost) == []


def test_what_another_container_loses_is_not_told() -> None:
    with boxed() as box, Box("trace-packets-other") as other:
        other.start(workload.idle())
        with asked("packets", box.target()) as trace:
            run(inside(other), "ip", "link", "set", "lo", "up")
            send(other, "127.0.0.1")
            assert counted(other, "Udp.NoPorts") == MANY
        assert trace.answer.dropped == 0
        assert trace.answer.usual_dropped == sum(drop.packets for drop in trace.answer.usual)


def test_a_storm_is_counted_to_the_last_packet_and_ends_in_time() -> None:
    def storm() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                for _ in range(500):
                    sock.sendto(b"x", ("127.0.0.1", PORT))

    with boxed() as box:
        before = counted(box, "Udp.NoPorts")
        began = time.monotonic()
        with asked("packets", box.target()) as trace:
            pids = [box.run(storm) for _ in range(2)]
            until(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids), "they ended")
        assert time.monotonic() - began < PATIENCE_SECONDS
        sent = counted(box, "Udp.NoPorts") - before
        assert sent > 1000
        assert trace.end is not None
        assert sent - trace.end.lost <= only(trace.answer).packets <= sent
        assert trace.end.lost < sent / 1000
        assert len(trace.of(Lost)) < 1000


def test_another_network_with_the_same_addresses_is_not_its_own() -> None:
    with boxed() as box, boxed(forward=False) as other:
        with asked("packets", box.target()) as trace:
            send(other, REMOTE)
            send(box, "127.0.0.1", many=3)
        drop = only(trace.answer)
        assert (drop.hop.interface, drop.packets) == ("lo", 3)
        assert {one.flow.destination for one in trace.of(Lost)} == {"127.0.0.1"}


def test_more_places_than_there_is_room_for_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet is lost from the sum, whatever the map can take."""
    small = partial(objects.loaded, sizes={"drops": 1})
    monkeypatch.setattr("whybox.trace.packets.loaded", small)
    with boxed() as box:
        with asked("packets", box.target()) as trace:
            send(box, REMOTE)
            send(box, GATEWAY)
        kept = sum(drop.packets for drop in (*trace.answer.drops, *trace.answer.usual))
        assert len((*trace.answer.drops, *trace.answer.usual)) == 1
        assert kept + trace.answer.uncounted >= 2 * MANY
        assert trace.answer.uncounted >= MANY


def test_without_a_program_the_counters_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "SENSORS", Path("/nonexistent"))
    with boxed() as box:
        with asked("packets", box.target()) as trace:
            send(box, "127.0.0.1")
        assert trace.begin is not None
        assert "instead: the counters" in trace.begin.notes[0]
        assert ("Udp.NoPorts", MANY) in [(one.name, one.by) for one in trace.answer.counters]


def test_a_container_that_is_started_anew_is_followed_to_its_new_namespace() -> None:
    host = Host()
    with boxed() as first, QUESTION.open(host, first.target(), Options()) as session:
        first.close()
        with boxed() as second:
            session.adopt(second.target())
            send(second, "127.0.0.1")
            answer = session.answer()
            assert isinstance(answer, Answer)
            drop = only(answer)
            check(drop, "NO_SOCKET", "__udp4_lib_rcv", "udp_rcv")
            assert drop.hop.inode == inode(inside(second))
            assert (drop.hop.stage, drop.hop.namespace) == ("container", "the container")


def told(trace: Trace) -> tuple[str, ...]:
    assert trace.begin is not None
    return tuple(trace.begin.notes)


def test_on_the_host_s_network_everything_there_counts_and_that_is_said() -> None:
    with Box("trace-packets") as box:
        box.start(workload.idle())
        with (
            asked("packets", sharing(box.target())) as trace,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            for _ in range(MANY):
                sock.sendto(b"x", ("127.0.0.1", PORT))
        assert any("host's" in note for note in told(trace))
        found = [d for d in trace.answer.drops if d.example.destination_port == PORT]
        assert sum(d.packets for d in found) == MANY
        assert found[0].hop.stage == "container"


def sharing(target: Target) -> Target:
    """The same as if it had been started with ``--network host``."""
    net = {"net": inode("/proc/self/ns/net")}
    return structs.replace(
        target,
        namespaces={**target.namespaces, **net},
        host_namespaces={**target.host_namespaces, **net},
    )


def test_what_it_attaches_and_costs_is_told() -> None:
    with boxed() as box:
        with asked("packets", box.target()) as trace:
            send(box, REMOTE)
        assert trace.begin is not None
        assert "tp_btf/kfree_skb" in trace.begin.attached
        assert trace.programs.runs >= MANY
