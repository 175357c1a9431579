"""The judge of network/listen_overflow on literal queues."""

import msgspec
import pytest
from msgspec import structs

from whybox.cases.network.listen_overflow.probe import Observation, judge
from whybox.change import HostSysctl, InProgram, Sysctl, Unpause
from whybox.kernel.acceptqueue import Counts, Look, Queue
from whybox.kernel.socketowner import Owner, Owners
from whybox.model import Certainty, Finding, Severity, Verdict

QUIET = Counts(overflows=7, drops=9, cookies=0, refused=0, opened=100)
NGINX = Owner(pid=42, comm="nginx", stopped=False)
MINE = Owners(of={900: NGINX}, complete=True, frozen=False)


def queue(waiting: int, room: int = 8, drops: int | None = 0, **more: object) -> Queue:
    known = {"address": "0.0.0.0", "port": 80, "inode": 900, "uid": 0, "who": None}
    return msgspec.convert(
        {**known, "waiting": waiting, "room": room, "drops": drops, **more}, Queue
    )


def look(*queues: Queue, somaxconn: int | None = 4096, **counts: int) -> Look:
    moved = {name: getattr(QUIET, name) + by for name, by in counts.items()}
    return Look(
        queues=queues, counts=structs.replace(QUIET, **moved), somaxconn=somaxconn, resets=False
    )


def seen(before: Look, after: Look, owners: Owners | None = MINE, **more: bool) -> Observation:
    return structs.replace(Observation(before=before, after=after, owners=owners), **more)


def change(finding: Finding) -> object:
    return next(cure.change for cure in finding.cures if cure.change is not None)


def test_an_observation_survives_a_recording() -> None:
    one = seen(look(queue(0)), look(queue(9, drops=3, who="a"), overflows=3, drops=3))
    assert msgspec.json.decode(msgspec.json.encode(one), type=Observation) == one


def test_a_queue_with_room_is_clear() -> None:
    finding = judge(seen(look(queue(0)), look(queue(8)), None))
    assert finding.verdict is Verdict.CLEAR
    assert "7 did before" in finding.summary


def test_a_burst_that_somaxconn_cut_off() -> None:
    before, after = look(queue(0), somaxconn=8), look(queue(0, drops=30), somaxconn=8, overflows=30)
    finding = judge(seen(before, after))
    assert finding.verdict is Verdict.FOUND
    assert (finding.severity, finding.certainty) == (Severity.WARNING, Certainty.CONFIRMED)
    assert "30 connections" in finding.summary
    assert "nginx (pid 42)" in finding.summary
    assert change(finding) == Sysctl("net.core.somaxconn", "128", at_start=True)


def test_on_the_hosts_network_it_is_the_hosts_parameter() -> None:
    before, after = look(queue(0), somaxconn=8), look(queue(0, drops=30), somaxconn=8, overflows=30)
    finding = judge(seen(before, after, shared=True))
    assert change(finding) == HostSysctl("net.core.somaxconn", "128")


def test_a_burst_that_the_program_s_own_backlog_cut_off() -> None:
    finding = judge(seen(look(queue(0)), look(queue(2, drops=600), overflows=600)))
    assert change(finding) == InProgram("call listen() with a backlog of 1024 instead of 8")


def test_a_program_that_accepts_none_needs_no_longer_queue() -> None:
    before = look(queue(9, drops=3, who="a"), somaxconn=8)
    after = look(queue(9, drops=5, who="a"), somaxconn=8, overflows=2, opened=50)
    finding = judge(seen(before, after))
    assert finding.severity is Severity.CRITICAL
    assert "accepted none" in finding.summary
    assert not any(isinstance(cure.change, Sysctl) for cure in finding.cures)


def test_others_wait_now_so_it_accepts_too_slowly() -> None:
    before = look(queue(9, drops=3, who="a"), somaxconn=8)
    after = look(queue(9, drops=5, who="b"), somaxconn=8, overflows=2)
    finding = judge(seen(before, after))
    assert "more slowly than they come" in finding.summary
    assert [type(cure.change) for cure in finding.cures] == [InProgram, Sysctl]


def test_who_waits_is_not_known_so_counters_tell() -> None:
    before, after = look(queue(9, drops=3)), look(queue(9, drops=5), overflows=2)
    assert "accepted none" in judge(seen(before, after)).summary
    busy = look(queue(9, drops=5), overflows=2, opened=20)
    assert "more slowly" in judge(seen(before, busy)).summary


def test_a_paused_container_and_a_stopped_process() -> None:
    before, after = look(queue(9, who="a")), look(queue(9, drops=5, who="a"), overflows=5)
    paused = judge(seen(before, after, structs.replace(MINE, frozen=True)))
    assert change(paused) == Unpause()
    still = Owners(of={900: structs.replace(NGINX, stopped=True)}, complete=True, frozen=False)
    stopped = judge(seen(before, after, still))
    assert "SIGSTOP" in stopped.summary
    assert stopped.cures[0].commands == ("kill -CONT 42",)


def test_requests_dropped_without_an_overflow_are_not_it() -> None:
    finding = judge(seen(look(queue(0)), look(queue(0, drops=6), drops=6)))
    assert finding.verdict is Verdict.CLEAR
    assert "6 requests were dropped for another reason" in finding.summary


@pytest.mark.parametrize(("counter", "words"), [("cookies", "a cookie"), ("refused", "dropped")])
def test_a_full_syn_queue_is_another_queue(counter: str, words: str) -> None:
    after = look(queue(0, drops=5), drops=5 if counter == "refused" else 0, **{counter: 5})
    finding = judge(seen(look(queue(0)), after))
    assert finding.verdict is Verdict.CLEAR
    assert "half-open" in finding.summary
    assert words in finding.summary
    assert "another reason" not in finding.summary


def test_full_to_the_brim_is_not_overflowing() -> None:
    full = queue(9, who="a")
    finding = judge(seen(look(full), look(full)))
    assert finding.verdict is Verdict.CLEAR
    assert "nobody was turned away yet" in finding.summary


def test_full_for_good_although_nobody_comes_now() -> None:
    full = queue(9, drops=4, who="a")
    finding = judge(seen(look(full), look(full)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "4 were turned away" in finding.summary


def test_drops_of_a_full_queue_that_never_overflowed_have_another_reason() -> None:
    full = queue(9, drops=4, who="a")
    never = structs.replace(QUIET, overflows=0)
    quiet = structs.replace(look(full), counts=never)
    assert judge(seen(quiet, quiet)).verdict is Verdict.CLEAR


def test_anothers_listener_in_the_same_namespace() -> None:
    before, after = look(queue(9)), look(queue(9, drops=5), overflows=5)
    nobody = Owners(of={}, complete=True, frozen=False)
    finding = judge(seen(before, after, nobody))
    assert finding.verdict is Verdict.CLEAR
    assert "another's" in finding.summary


def test_whose_it_is_cannot_be_seen_so_it_is_its_own() -> None:
    before, after = look(queue(9)), look(queue(9, drops=5), overflows=5)
    hidden = Owners(of={}, complete=False, frozen=None)
    assert judge(seen(before, after, hidden)).verdict is Verdict.FOUND
    # But not on the host's network, where everybody is.
    assert judge(seen(before, after, hidden, shared=True)).verdict is Verdict.CLEAR


def test_a_listener_with_other_drops_is_not_accused_beside_a_full_one() -> None:
    full, other = queue(9, who="a"), queue(0, port=81, inode=901)
    both = Owners(of={900: NGINX, 901: NGINX}, complete=True, frozen=False)
    after = look(
        structs.replace(full, drops=5), structs.replace(other, drops=8), overflows=5, drops=13
    )
    finding = judge(seen(look(full, other), after, both))
    assert "port 80 " in finding.summary
    assert "81" not in finding.summary


def test_two_queues_overflow() -> None:
    full, other = queue(9, who="a"), queue(0, port=81, inode=901)
    both = Owners(of={900: NGINX, 901: NGINX}, complete=True, frozen=False)
    after = look(
        structs.replace(full, drops=5), structs.replace(other, drops=8), overflows=13, drops=13
    )
    assert "so was that of port 81" in judge(seen(look(full, other), after, both)).summary


def test_the_listener_is_gone() -> None:
    finding = judge(seen(look(queue(9)), look(overflows=5), None))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert "port 80" in finding.summary


def test_a_new_listener_begins_at_zero() -> None:
    finding = judge(seen(look(), look(queue(9, drops=5), overflows=5)))
    assert finding.verdict is Verdict.FOUND
    assert "dropped at it +5" in finding.evidence[1].says


def test_a_kernel_that_does_not_count_per_listener() -> None:
    before, after = look(queue(9, drops=None)), look(queue(9, drops=None), overflows=5)
    assert judge(seen(before, after)).verdict is Verdict.FOUND


def test_what_cannot_be_seen_is_unknown() -> None:
    finding = judge(Observation(before=None, after=None, owners=None, reason="run as root"))
    assert finding.verdict is Verdict.UNKNOWN
    assert "run as root" in finding.summary
