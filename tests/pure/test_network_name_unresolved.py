"""network/name_unresolved: judged on literal observations, and its packets parsed."""

import socket
import struct

import pytest
from msgspec import structs

from whybox.cases.network.name_unresolved.probe import judge
from whybox.change import InProgram, Nameservers
from whybox.kernel import dns, resolvconf
from whybox.kernel.dnswatch import Answer, Caught, Question, Refusal, questions
from whybox.kernel.lookups import Observation
from whybox.kernel.resolvconf import ResolvConf
from whybox.model import Certainty, Severity, Verdict

SECOND = 1_000_000_000
FIRST, SECOND_SERVER = "10.0.0.1", "10.0.0.2"
CONFIG = ResolvConf(nameservers=(FIRST, SECOND_SERVER), search=("a.test", "b.test"), ndots=5)
SEEN = Observation(
    own=True,
    inside=False,
    config=CONFIG,
    unread=None,
    unseen=None,
    questions=(),
    heard=(),
    opened=(),
    held=(),
    lost=0,
    unsent=0,
    serves=False,
    asked=None,
    window_ns=5 * SECOND,
)


def answer(server: str = FIRST, rcode: int = 0, after_ns: int = 1_000_000) -> Answer:
    return Answer(server=server, rcode=rcode, records=1, after_ns=after_ns)


def question(
    *answers: Answer,
    name: str = "x.test",
    asked_ns: int = 0,
    servers: tuple[str, ...] = (FIRST,),
    refusals: tuple[Refusal, ...] = (),
) -> Question:
    return Question(
        name=name,
        qtype=1,
        asked_ns=asked_ns,
        servers=servers,
        sent=1,
        answers=answers,
        refusals=refusals,
    )


def refusal(server: str = FIRST, told_by: str = FIRST) -> Refusal:
    return Refusal(server=server, told_by=told_by, code="port unreachable", after_ns=50_000)


def seen(*asked: Question, **more: object) -> Observation:
    heard = sorted({a.server for q in asked for a in q.answers})
    return structs.replace(SEEN, **{"questions": asked, "heard": tuple(heard), **more})


def test_no_lookup_and_answers_in_time_are_clear() -> None:
    assert judge(seen()).verdict is Verdict.CLEAR
    assert judge(seen(question(answer()))).verdict is Verdict.CLEAR


def test_a_dead_server_before_one_that_works() -> None:
    asked = question(
        answer(SECOND_SERVER, after_ns=5 * SECOND // 2), servers=(FIRST, SECOND_SERVER)
    )
    finding = judge(seen(asked))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)
    assert f"{FIRST} does not answer" in finding.summary
    assert "only after 2.5 s" in finding.summary
    assert finding.cures[0].change == Nameservers((SECOND_SERVER,), (FIRST,))


def test_silence_is_critical_where_nothing_is_resolved() -> None:
    finding = judge(seen(question()))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert finding.cures[0].change is None


@pytest.mark.parametrize(
    ("age_ns", "verdict"), [(899_000_000, Verdict.UNKNOWN), (900_000_000, Verdict.FOUND)]
)
def test_a_young_question_tells_nothing(age_ns: int, verdict: Verdict) -> None:
    assert judge(seen(question(asked_ns=5 * SECOND - age_ns))).verdict is verdict


def test_a_socket_that_waited_all_the_time() -> None:
    young = question(asked_ns=5 * SECOND - 400_000_000)
    finding = judge(seen(young, opened=(FIRST,)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert judge(seen(opened=(FIRST,))).verdict is Verdict.UNKNOWN
    assert judge(seen(young, opened=(FIRST,), heard=(FIRST,))).verdict is Verdict.UNKNOWN
    newest = question(asked_ns=5 * SECOND - 40_000_000)
    assert judge(seen(newest, opened=(FIRST,))).verdict is Verdict.UNKNOWN


def test_a_socket_that_is_closed_while_others_are_asked_tells_nothing() -> None:
    young = question(asked_ns=5 * SECOND - 400_000_000)
    other = question(answer(SECOND_SERVER), name="y.test", servers=(SECOND_SERVER,))
    config = ResolvConf(nameservers=(SECOND_SERVER, FIRST), search=())
    both = seen(young, other, opened=(FIRST,), config=config)
    assert judge(both).verdict is Verdict.CLEAR
    assert judge(structs.replace(both, held=(FIRST,))).verdict is Verdict.FOUND


def test_the_second_server_is_asked_since_the_first_was_waited_for() -> None:
    after = question(answer(SECOND_SERVER), servers=(SECOND_SERVER,), asked_ns=4 * SECOND)
    finding = judge(seen(after, opened=(FIRST,)))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    assert finding.cures[0].change == Nameservers((SECOND_SERVER,), (FIRST,))
    assert judge(seen(after)).verdict is Verdict.CLEAR


def test_one_lost_among_many_is_ordinary() -> None:
    many = [question(answer(), name=f"n{n}.test") for n in range(40)]
    assert judge(seen(question(), *many)).verdict is Verdict.CLEAR
    assert judge(seen(question(), *many[:15])).verdict is Verdict.FOUND


def test_the_same_name_asked_elsewhere_with_another_number() -> None:
    fast = question(answer(SECOND_SERVER), servers=(SECOND_SERVER,), asked_ns=1000)
    assert judge(seen(question(), fast)).verdict is Verdict.CLEAR
    # The lookup before it was answered just now.
    past = structs.replace(fast, asked_ns=SECOND)
    assert judge(seen(question(asked_ns=SECOND + 200_000_000), past)).verdict is Verdict.FOUND
    slow = structs.replace(fast, asked_ns=2 * SECOND)
    assert judge(seen(question(), slow)).verdict is Verdict.FOUND


def test_a_refusal_and_who_it_comes_from() -> None:
    closed = judge(seen(question(refusals=(refusal(),))))
    assert "nobody listens at its UDP port 53." in closed.summary
    rejected = judge(seen(question(refusals=(refusal(told_by="10.0.0.254"),))))
    assert "10.0.0.254 says port unreachable" in rejected.summary
    assert closed.verdict is rejected.verdict is Verdict.FOUND


def test_a_refusal_counts_for_the_silence_that_icmps_rate_limit_makes() -> None:
    finding = judge(seen(question(refusals=(refusal(),)), question(asked_ns=SECOND)))
    assert "refuses" in finding.summary


def test_a_refusal_is_harmless_where_the_next_server_answers() -> None:
    both = question(answer(SECOND_SERVER), servers=(FIRST, SECOND_SERVER), refusals=(refusal(),))
    assert judge(seen(both)).verdict is Verdict.CLEAR


def test_a_nameserver_within_the_container_is_not_blamed_for_whom_it_asks() -> None:
    config = ResolvConf(nameservers=("127.0.0.11",), search=())
    both = question(servers=("127.0.0.11", FIRST))
    silent = judge(seen(both, config=config))
    assert f"Its nameserver {FIRST} does not answer" in silent.summary
    assert "127.0.0.11, whom its programs ask, waits for it" in silent.summary
    refused = structs.replace(both, refusals=(refusal(),))
    assert f"Its nameserver {FIRST} refuses" in judge(seen(refused, config=config)).summary
    alone = judge(seen(question(servers=("127.0.0.11",)), config=config))
    assert "Its nameserver 127.0.0.11 does not answer" in alone.summary
    failing = question(answer(rcode=2), answer("127.0.0.11", rcode=2), servers=both.servers)
    assert judge(seen(failing, config=config)).summary.startswith(f"{FIRST} answers SERVFAIL")


def test_a_server_that_fails() -> None:
    finding = judge(seen(question(answer(rcode=2))))
    assert "answers SERVFAIL for x.test" in finding.summary
    # IPv4 is known, and only the other type fails.
    known = structs.replace(question(answer()), qtype=28)
    assert judge(seen(question(answer(rcode=2)), known)).verdict is Verdict.CLEAR


def test_a_search_list_that_takes_seconds() -> None:
    step = 400_000_000
    forms = [
        question(answer(rcode=rcode, after_ns=step - 1000), name=name, asked_ns=number * step)
        for number, (name, rcode) in enumerate(
            [("x.test.a.test", 3), ("x.test.b.test", 3), ("x.test", 0)]
        )
    ]
    finding = judge(seen(*forms))
    assert finding.verdict is Verdict.FOUND
    assert "makes 3 names of x.test" in finding.summary
    assert isinstance(finding.cures[0].change, InProgram)
    assert judge(seen(*forms[1:])).verdict is Verdict.CLEAR


def test_a_name_that_does_not_exist_is_information() -> None:
    forms = ("x.test", "x.test.a.test", "x.test.b.test")
    asked = [question(answer(rcode=3), name=name) for name in forms]
    finding = judge(seen(*asked))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.INFO)
    assert "each of its 3 forms" in finding.summary
    assert judge(seen(*asked, serves=True)).verdict is Verdict.CLEAR
    # The search is not over, or one form exists.
    assert judge(seen(*asked[1:])).verdict is Verdict.CLEAR
    there = question(answer(), name="x.test.b.test", asked_ns=SECOND)
    assert judge(seen(*asked[:2], there)).verdict is Verdict.CLEAR


def test_whose_lookups_those_of_the_host_are_is_not_known() -> None:
    assert judge(seen(question(), own=False)).verdict is Verdict.UNKNOWN
    assert judge(seen(question(answer()), own=False)).verdict is Verdict.CLEAR


def test_what_could_not_be_seen_is_unknown() -> None:
    assert judge(seen(unsent=3)).verdict is Verdict.UNKNOWN
    assert judge(seen(question(answer()), unsent=3)).verdict is Verdict.CLEAR
    assert judge(seen(unseen="not permitted")).verdict is Verdict.UNKNOWN
    many = [question(answer(), name=f"n{n}.test") for n in range(4)]
    assert judge(seen(question(), *many, lost=9)).verdict is Verdict.UNKNOWN
    assert judge(seen(question(), lost=9)).verdict is Verdict.FOUND


# Packets


def udp(source: str, port: int, destination: str, to_port: int, body: bytes) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0)
    return head + addresses + struct.pack("!HHHH", port, to_port, 8 + len(body), 0) + body


def caught(data: bytes, at_ns: int, *, outward: bool) -> Caught:
    packet = dns.packet(data)
    assert packet is not None
    return Caught(at_ns=at_ns, outward=outward, inward=not outward, packet=packet)


def test_a_question_and_its_answer_are_one() -> None:
    ask = dns.query("Web.Test", 7)
    reply = struct.pack("!HHHHHH", 7, 0x8183, 1, 0, 0, 0) + ask[12:]
    (one,) = questions(
        [
            caught(udp("10.0.0.9", 4000, FIRST, 53, ask), 100, outward=True),
            caught(udp(FIRST, 53, "10.0.0.9", 4000, reply), 900, outward=False),
        ],
        50,
    )
    assert (one.name, one.asked_ns, one.servers) == ("web.test", 50, (FIRST,))
    assert one.answers == (Answer(server=FIRST, rcode=3, records=0, after_ns=800),)


def test_what_others_ask_of_a_nameserver_in_it_is_not_its_question() -> None:
    theirs = udp("10.0.0.7", 4000, "10.0.0.9", 53, dns.query("web.test", 7))
    assert questions([caught(theirs, 100, outward=False)], 0) == ()


def test_an_icmp_error_that_repeats_only_the_head_finds_its_question() -> None:
    ask = udp("10.0.0.9", 4000, FIRST, 53, dns.query("web.test", 7))
    about = struct.pack("!BBHI", 3, 3, 0, 0) + ask[:28]
    icmp = udp("10.0.0.254", 0, "10.0.0.9", 0, b"")[:20] + about
    icmp = icmp[:9] + b"\x01" + icmp[10:]
    (one,) = questions([caught(ask, 100, outward=True), caught(icmp, 300, outward=False)], 0)
    assert one.refusals == (
        Refusal(server=FIRST, told_by="10.0.0.254", code="port unreachable", after_ns=200),
    )


@pytest.mark.parametrize("cut", [0, 1, 12, 19, 20, 27, 28, 35, 40, 45])
def test_a_cut_off_packet_is_no_question(cut: int) -> None:
    whole = udp("10.0.0.9", 4000, FIRST, 53, dns.query("web.test", 7))
    packet = dns.packet(whole[:cut])
    assert packet is None or packet.message is None


def test_a_hostile_name_is_spelled_out() -> None:
    ask = bytearray(dns.query("evilname.test", 7))
    ask[13:17] = b"\x1b[31"
    said = dns.message(bytes(ask))
    assert said is not None
    assert said.name == "\\027\\09131name.test"


def test_resolv_conf_as_resolvers_read_it() -> None:
    text = (
        "# nameserver 1.1.1.1\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver ::1\n"
        "nameserver 10.0.0.4\ndomain old.test\nsearch a.test. b.test\n"
        "options ndots:x rotate ndots:5\n"
    )
    assert resolvconf.parse(text) == ResolvConf(
        nameservers=("10.0.0.1", "10.0.0.2", "::1"), search=("a.test", "b.test"), ndots=5
    )
    assert resolvconf.parse("") == ResolvConf(nameservers=(), search=())
