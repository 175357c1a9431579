"""What a network namespace has counted meanwhile, and what follows from it for its connections.

From ``/proc/PID/net/{snmp,netstat,dev,softnet_stat}``: the counters of the namespace of PID, but
for the last, which is the whole machine's.
"""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from whybox.kernel.host import Host, ParseError
from whybox.kernel.netpath import counters

#: Counters whose growth tells of a packet that did not arrive, or had to be sent again.
TOLD = {
    "Ip": (
        "InHdrErrors", "InAddrErrors", "InUnknownProtos", "InDiscards", "OutDiscards",
        "OutNoRoutes", "ReasmFails", "FragFails",
    ),
    "IpExt": ("InNoRoutes", "InTruncatedPkts", "InCsumErrors"),
    "Icmp": ("InDestUnreachs", "OutRateLimitHost"),
    "Tcp": ("AttemptFails", "EstabResets", "RetransSegs", "InErrs", "OutRsts", "InCsumErrors"),
    "Udp": ("NoPorts", "InErrors", "RcvbufErrors", "SndbufErrors", "InCsumErrors", "MemErrors"),
    "TcpExt": (
        "TCPTimeouts", "TCPSynRetrans", "TCPLostRetransmit", "TCPRetransFail", "TCPBacklogDrop",
        "TCPRcvQDrop", "TCPOFODrop", "TCPZeroWindowDrop", "TCPMinTTLDrop", "TCPReqQFullDrop",
        "TCPAbortOnTimeout", "TCPAbortOnMemory", "TCPMemoryPressures", "PruneCalled",
        "RcvPruned", "ListenOverflows", "ListenDrops", "IPReversePathFilter", "PAWSEstab",
        "PFMemallocDrop", "TCPSACKReorder", "TCPTSReorder", "TCPRenoReorder", "TCPDSACKRecv",
        "TCPDSACKIgnoredDubious", "TCPSpuriousRTOs",
    ),
}  # fmt: skip

#: Fewer events tell nothing, however little was sent; and below a thousandth of what was sent, up
#: to so many, nothing is wrong.
HANDFUL, ENOUGH, ENOUGH_SHARE = 5, 50, 0.001

#: Late segments for each that was sent again. Measured: loss 0.000 to 0.02, a full queue of a CPU
#: 0.00005, reordering 0.5 to 1.2 (netem with 1 % loss, with 5 ms of reordering), jitter 19.
REORDERED_SHARE = 0.2

#: Of what was sent again, this share had arrived before; and here as good as all. Measured: loss
#: 0.003, reordering 0.83.
IN_VAIN_SHARE, ALL_IN_VAIN = 0.5, 0.9

#: So many that had arrived before for each that was sent again: something else doubles them.
DOUBLED_EACH = 5

#: Where fewer were late and fewer in vain, what was sent again had been lost.
LOST_SHARE = 0.1


def enough(of: int) -> float:
    """So many events of so many segments tell something."""
    return max(HANDFUL, min(ENOUGH, ENOUGH_SHARE * of))


class Counter(Struct, frozen=True, kw_only=True):
    """One that grew."""

    name: str
    """``Udp.NoPorts``, ``eth0 rx dropped``, ``softnet dropped``."""
    by: int
    whole_machine: bool = False
    """It counts for every namespace together."""


def read(host: Host, pid: int | str) -> dict[str, int]:
    """All counters at this moment; what cannot be read is missing."""
    found: dict[str, int] = {}
    for file, parse in (
        ("snmp", counters),
        ("netstat", counters),
        ("dev", devices),
        ("softnet_stat", softnet),
    ):
        try:
            found |= parse(host.text(f"/proc/{pid}/net/{file}"))
        except (OSError, ParseError, ValueError):
            continue
    return found


def devices(text: str) -> dict[str, int]:
    """What interfaces gave up (``/proc/net/dev``).

    >>> devices("Inter-|  Receive\\n face |bytes\\n eth0: 9 8 7 6 0 0 0 0 5 4 3 2 0 0 0 0\\n")
    {'eth0 rx errors': 7, 'eth0 rx dropped': 6, 'eth0 tx errors': 3, 'eth0 tx dropped': 2}
    """
    found: dict[str, int] = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.rpartition(":")
        numbers = [int(word) for word in rest.split()]
        if len(numbers) < 12:
            raise ParseError("/proc/net/dev", line)
        told = {"rx errors": 2, "rx dropped": 3, "tx errors": 10, "tx dropped": 11}
        found |= {f"{name.strip()} {what}": numbers[at] for what, at in told.items()}
    return found


def softnet(text: str) -> dict[str, int]:
    """Packets that CPUs took from their queues, and that found one full, in hexadecimal.

    >>> softnet("0000abcd 00000002 00000001 0\\n00000001 00000010 00000000 0\\n")
    {'softnet taken': 43982, 'softnet dropped': 18}
    """
    rows = [[int(word, 16) for word in line.split()[:2]] for line in text.splitlines()]
    return {
        "softnet taken": sum(row[0] for row in rows),
        "softnet dropped": sum(row[1] for row in rows),
    }


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[Counter, ...]:
    """Those worth telling that grew."""
    return tuple(
        Counter(name=name, by=by, whole_machine=name.startswith("softnet"))
        for name in after
        if _is_told(name) and (by := after[name] - before.get(name, 0)) > 0
    )


def _is_told(name: str) -> bool:
    group, _, rest = name.partition(".")
    return rest in TOLD[group] if group in TOLD else name.endswith(("dropped", "errors"))


class Shares(Struct, frozen=True, kw_only=True):
    """What became of the segments that were sent again."""

    retransmitted: int
    reordered: int
    """How often one was seen to be late and not lost."""
    duplicates: int
    """Segments that the other side had already."""
    sent: int
    """Segments in all."""

    def verdict(self) -> str | None:
        """``lost``, ``reordered``, ``duplicated``, ``sent again too soon``, ``mixed``; ``None``:
        too few to tell."""
        if max(self.reordered, self.duplicates, self.retransmitted) < enough(self.sent):
            return None
        if self.duplicates > DOUBLED_EACH * self.retransmitted:
            return "duplicated"
        late = self.reordered / max(self.retransmitted, 1)
        in_vain = self.duplicates / max(self.retransmitted, 1)
        if late > REORDERED_SHARE and in_vain >= IN_VAIN_SHARE:
            return "reordered"
        if in_vain >= ALL_IN_VAIN:
            return "sent again too soon"
        return "lost" if in_vain < LOST_SHARE and late < LOST_SHARE else "mixed"


_MEANINGS = {
    "lost": "segments are lost: look where they are dropped",
    "reordered": "segments are not lost but overtake each other: look at what spreads one"
    " connection over several queues or links (bonding, RPS, several queues of a card)",
    "duplicated": "segments arrive twice without being sent twice: something on the way doubles",
    "sent again too soon": "segments are neither lost nor late by much: the answer was held up, by"
    " a CPU that was not to be had or a full queue",
    "mixed": "some segments are lost, some late",
}


def conclusions(before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[str]:
    """What the counters of a namespace say of its connections, a sentence each."""
    by = {counter.name: counter.by for counter in grown(before, after)}
    reorders = ("TcpExt.TCPSACKReorder", "TcpExt.TCPTSReorder", "TcpExt.TCPRenoReorder")
    shares = Shares(
        retransmitted=by.get("Tcp.RetransSegs", 0),
        reordered=sum(by.get(name, 0) for name in reorders),
        duplicates=by.get("TcpExt.TCPDSACKRecv", 0),
        sent=after.get("Tcp.OutSegs", 0) - before.get("Tcp.OutSegs", 0),
    )
    verdict = shares.verdict()
    if verdict is not None:
        yield (
            f"of all its TCP: {shares.retransmitted} of {shares.sent} segments were sent again,"
            f" {shares.reordered} times one was late and not lost, {shares.duplicates} had arrived"
            f" before: {_MEANINGS[verdict]}"
        )
    if by.get("TcpExt.ListenOverflows"):
        yield (
            f"{by['TcpExt.ListenOverflows']} connections found the accept queue of a listener full"
            " (no packet is dropped for it that a tracepoint would tell): the program accepts too"
            " slowly, or its backlog is too short"
        )
