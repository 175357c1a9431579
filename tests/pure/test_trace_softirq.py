"""Softirqs: how their events and sums are read, summed and shown."""

import struct
from typing import Any
from xml.etree import ElementTree

from whybox.kernel.host import Host
from whybox.kernel.sensors import softirq as sensor
from whybox.kernel.sensors.softirq import Callee, Held, Taken
from whybox.kernel.symbols import KernelSymbols
from whybox.trace.question import Answered, Happened
from whybox.trace.softirq import Answer, Long, answered, counted, long, period_ns
from whybox.views import trace as views
from whybox.views.trace import softirq as view


class Symbols(KernelSymbols):
    """Of a kernel with two functions."""

    def _table(self) -> Any:
        from whybox.kernel.symbols import functions

        if self._starts is None:
            lines = ["1000 t estimation_timer\t[ip_vs]\n", "2000 T process_timeout\n"]
            self._starts, self._names = functions(lines)
        return self._starts


SYMBOLS = Symbols(Host())


def held(cpu: int, vector: int = 3, **more: int) -> Held:
    fields = {"count": 10, "sum_ns": 1000, "longest_ns": 500, "thread_count": 1, "thread_ns": 5}
    return Held(vector=vector, cpu=cpu, buckets=(0, 10) + (0,) * 30, **(fields | more))


def callee(**more: Any) -> Callee:
    fields: dict[str, Any] = {
        "kind": "timer",
        "function": 0x1004,
        "number": 0,
        "name": "",
        "count": 4,
        "sum_ns": 80_000_000,
        "longest_ns": 30_000_000,
        "several": False,
        "gaps": 3,
        "gap_sum_ns": 6_012_000_000,
        "gap_least_ns": 2_003_000_000,
        "gap_most_ns": 2_005_000_000,
    }
    return Callee(**(fields | more))


def test_cpus_are_summed_and_the_costliest_is_first() -> None:
    found = answered(
        [held(0), held(1, longest_ns=900), held(0, vector=1, sum_ns=7000)],
        [
            Taken(by=3, count=2, sum_ns=40, longest_ns=30),
            Taken(by=15, count=1, sum_ns=50, longest_ns=50),
        ],
        [callee()],
        SYMBOLS,
    )
    timer, net = found.vectors
    assert (timer.name, net.name) == ("TIMER", "NET_RX")
    assert (net.count, net.sum_ns, net.longest_ns, net.in_ksoftirqd) == (20, 2000, 900, 2)
    assert net.buckets[1] == 20
    assert [cpu.cpu for cpu in net.cpus] == [0, 1]
    assert found.softirq_ns == 9000
    assert [(i.by, i.sum_ns) for i in found.interrupted or ()] == [
        ("device interrupts", 50),
        ("NET_RX", 40),
    ]
    assert found.interrupted_ns == 90
    [called] = found.called
    assert (called.name, called.module, called.period_ns) == (
        "estimation_timer",
        "ip_vs",
        2_004_000_000,
    )


def test_only_a_regular_timer_has_a_period() -> None:
    assert period_ns(callee()) == 2_004_000_000
    assert period_ns(callee(gaps=1)) is None
    assert period_ns(callee(gap_least_ns=1_000_000_000)) is None


def test_counts_are_differences() -> None:
    before = {("NET_RX", 0): 5, ("NET_RX", 1): 1, ("RCU", 0): 9}
    after = {("NET_RX", 0): 7, ("NET_RX", 1): 4, ("RCU", 0): 9, ("NEW", 0): 1}
    assert [(v.name, v.count) for v in counted(before, after)] == [("NET_RX", 5), ("NEW", 1)]


def slow(**more: Any) -> bytes:
    fields: dict[str, Any] = {
        "at": 5_000_000_000,
        "took": 3_000_000,
        "function": 0,
        "kind": 0,
        "number": 3,
        "cpu": 1,
        "slot": 1,
        "pid": 70,
        "tid": 71,
        "thread": 0,
        "comm": b"we\x1bb\nx",
        "name": b"",
    }
    return struct.pack("=QQQIIIIIII16s16s4x", *(fields | more).values())


def test_events_are_read_and_named() -> None:
    event = long(sensor.slow(slow()), 1, SYMBOLS)
    assert (event.what, event.took_ns, event.cpu, event.on_target) == (
        "softirq NET_RX",
        3_000_000,
        1,
        True,
    )
    assert (
        long(sensor.slow(slow(thread=1, slot=0)), 1, SYMBOLS).what == "softirq NET_RX in ksoftirqd"
    )
    timer = long(sensor.slow(slow(kind=1, function=0x1010)), 2, SYMBOLS)
    assert (timer.what, timer.on_target) == ("timer estimation_timer", False)
    assert long(sensor.slow(slow(kind=3, name=b"virtio3-rx\0x")), 1, SYMBOLS).what == (
        "irq 3 (virtio3-rx)"
    )


def test_an_event_harms_no_terminal() -> None:
    event = long(sensor.slow(slow()), 1, SYMBOLS)
    [line] = views.text("softirq", Happened(event=event))
    assert "\x1b" not in line
    assert "\n" not in line
    assert line.startswith("5.000000     3 ms softirq NET_RX on CPU 1, the container's we")


def test_the_idle_task_is_nobody() -> None:
    event = Long(
        at_ns=1, took_ns=1, what="softirq RCU", cpu=0, on_target=False, pid=0, comm="swapper/0"
    )
    assert view.event(event).endswith("on top of nobody")


def test_entries_of_the_map_are_read() -> None:
    key = struct.pack("=QII", 0x1004, 1, 0)
    value = struct.pack("=10Q16s", 4, 80, 30, 9, 0xAB, 0, 3, 60, 19, 21, b"")
    found = sensor.callee(key, value)
    assert (found.kind, found.count, found.sum_ns, found.longest_ns) == ("timer", 4, 80, 30)
    assert (found.several, found.gaps, found.gap_sum_ns) == (False, 3, 60)
    assert (found.gap_least_ns, found.gap_most_ns) == (19, 21)


def test_the_answer_is_told() -> None:
    told = answered(
        [held(0)], [], [callee(), callee(kind="irq", number=42, name="vir\x1btio", gaps=0)], SYMBOLS
    )
    lines = views.text("softirq", Answered(answer=told))
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "timer estimation_timer [ip_vs], every 2.00 s" in text
    several = answered([held(0)], [], [callee(several=True)], SYMBOLS)
    assert any("each of several every 2.00 s" in line for line in view.answer(several))
    assert "none of it interrupted a task of the container" in text
    assert "10 softirqs on this host, 1 us of CPU in all, 100% of it in NET_RX" in text
    ElementTree.fromstring(view.PICTURES["svg"](told, "softirq"))


def test_counts_alone_are_told() -> None:
    vectors = tuple(counted({}, {("NET_RX", cpu): cpu for cpu in range(1, 9)}))
    told = Answer(
        vectors=vectors,
        called=(),
        more_called=0,
        softirq_ns=20_000_000,
        interrupted=None,
        interrupted_ns=None,
    )
    lines = view.answer(told)
    assert lines[0] == "36 softirqs on this host, 20 ms of CPU in all"
    assert "and 4 more" in lines[1]
    assert "not known" in lines[-1]
    ElementTree.fromstring(view.svg(told, "softirq"))


def test_nothing_is_told_as_nothing() -> None:
    assert view.answer(answered([], [], [], SYMBOLS)) == ["no softirq ran"]
