"""Netlink answers as bytes: those of a kernel, and such as no kernel should send.

The bytes are little-endian, as every machine is that whybox is built for.
"""

import errno
import struct

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from whybox.kernel import netlink
from whybox.kernel.host import ParseError
from whybox.kernel.netlink import attribute

REFUSAL = bytes.fromhex(
    "5c0000000200000363000000e3550000eaffffff240000001a000100630000000000000036000100"
    "697076343a20556e737570706f727465642072746d5f666c61677320666f7220726f757465206765"
    "742072657175657374000000"
)
DONE = bytes.fromhex("14000000 0300 0200 07000000 00000000 00000000")


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    length = 16 + len(payload)
    return struct.pack("=IHHII", length, kind, flags, sequence, 0) + payload + bytes(-length % 4)


def test_a_request_is_as_long_as_it_says() -> None:
    sent = netlink.request(18, netlink.NLM_F_DUMP, 7, bytes(16))
    assert sent == bytes.fromhex("20000000 1200 0103 07000000 00000000") + bytes(16)


def test_values_are_padded_and_padding_is_not_read_back() -> None:
    assert attribute(3, b"br0\0x") == bytes.fromhex("0900 0300 62723000 78 000000")
    assert netlink.attributes(attribute(3, b"br0\0x")) == {3: b"br0\0x"}


def test_the_nested_flag_is_no_part_of_a_type() -> None:
    assert netlink.attributes(attribute(0x8012, b"1234")) == {18: b"1234"}


def test_of_two_values_the_last_counts() -> None:
    assert netlink.attributes(attribute(1, b"a") + attribute(1, b"b")) == {1: b"b"}


def test_the_last_message_of_a_dump_ends_the_answer() -> None:
    part = netlink.portion(message(16, 2, 7, b"link") + DONE, 7, "RTM_GETLINK")
    assert [each.payload for each in part.messages] == [b"link"]
    assert part.done
    assert not part.interrupted


def test_a_dump_that_is_not_over_wants_more() -> None:
    assert not netlink.portion(message(16, 2, 7, b"link"), 7, "RTM_GETLINK").done


def test_a_message_that_stands_alone_is_a_whole_answer() -> None:
    assert netlink.portion(message(24, 0, 7, b"route"), 7, "RTM_GETROUTE").done


def test_what_is_left_of_another_answer_is_passed_over() -> None:
    part = netlink.portion(message(16, 0, 6, b"old") + DONE.replace(b"\7", b"\6"), 7, "RTM_GETLINK")
    assert part == netlink.Portion(messages=(), done=False, interrupted=False)


def test_no_op_messages_are_passed_over() -> None:
    assert netlink.portion(message(1, 0, 7, b""), 7, "RTM_GETLINK").messages == ()


@pytest.mark.parametrize("interrupted", [message(16, 0x12, 7, b""), message(3, 0x12, 7, bytes(4))])
def test_an_interrupted_dump_is_noticed_in_whichever_message_says_so(interrupted: bytes) -> None:
    assert netlink.portion(interrupted, 7, "RTM_GETLINK").interrupted


def test_after_an_interrupted_answer_the_kernel_is_asked_again_and_then_no_more() -> None:
    link = netlink.Message(type=16, flags=2, sequence=7, payload=b"link")
    answers = iter([([], True), ([link], False), ([], False)])
    assert netlink.consistent(answers, "RTM_GETLINK") == [link]
    assert len(list(answers)) == 1


def test_an_answer_that_is_never_whole_is_no_answer() -> None:
    with pytest.raises(OSError, match="RTM_GETLINK") as refused:
        netlink.consistent([([], True)] * 5, "RTM_GETLINK")
    assert refused.value.errno == errno.EBUSY


def test_a_refusal_says_errno_question_and_the_kernels_own_reason() -> None:
    with pytest.raises(OSError, match="Unsupported rtm_flags for route get") as refused:
        netlink.portion(REFUSAL, 99, "RTM_GETROUTE 10.8.1.1")
    assert refused.value.errno == errno.EINVAL
    assert refused.value.filename == "RTM_GETROUTE 10.8.1.1"


def test_a_refusal_may_repeat_the_request_before_the_reason() -> None:
    asked = message(26, 1, 99, b"12345678")
    payload = struct.pack("=i", -errno.EINVAL) + asked + attribute(1, b"because\0")
    with pytest.raises(OSError, match="because"):
        netlink.portion(message(2, 0x200, 99, payload), 99, "RTM_GETROUTE")


def test_a_refusal_keeps_its_python_class() -> None:
    refused = message(2, 0x100, 7, struct.pack("=i", -errno.EPERM) + bytes(16))
    with pytest.raises(PermissionError):
        netlink.portion(refused, 7, "RTM_GETLINK")


def test_a_dump_can_end_with_an_error() -> None:
    ended = message(3, 2, 7, struct.pack("=i", -errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        netlink.portion(message(16, 2, 7, b"link") + ended, 7, "RTM_GETROUTE")


def test_an_acknowledgement_is_no_error() -> None:
    acknowledged = netlink.portion(message(2, 0x100, 7, bytes(20)), 7, "RTM_GETLINK")
    assert acknowledged == netlink.Portion(messages=(), done=True, interrupted=False)


def test_a_dump_may_end_without_a_status() -> None:
    assert netlink.portion(message(3, 2, 7, b""), 7, "RTM_GETLINK").done


def test_an_overrun_is_an_error() -> None:
    with pytest.raises(OSError, match="RTM_GETLINK") as lost:
        netlink.portion(message(4, 0, 7, b""), 7, "RTM_GETLINK")
    assert lost.value.errno == errno.ENOBUFS


@pytest.mark.parametrize(
    "data",
    [
        b"\x14\0\0\0",
        struct.pack("=IHHII", 15, 16, 0, 7, 0),
        struct.pack("=IHHII", 0, 16, 0, 7, 0),
        struct.pack("=IHHII", 17, 16, 0, 7, 0),
        struct.pack("=IHHII", 0xFFFFFFFF, 16, 0, 7, 0) + bytes(64),
        message(2, 0, 7, b"\xff\xff"),
        message(2, 0, 7, struct.pack("=i", 5) + bytes(16)),
        message(2, 0x200, 7, struct.pack("=i", -22)),
    ],
    ids=[
        "half a header",
        "shorter than its header",
        "no length",
        "one byte short",
        "4 GiB",
        "half an error",
        "a positive error",
        "an error without its request",
    ],
)
def test_a_message_that_lies_about_itself_is_refused(data: bytes) -> None:
    with pytest.raises(ParseError):
        netlink.portion(data, 7, "RTM_GETLINK")


@pytest.mark.parametrize(
    "data", [b"\5\0", b"\0\0\1\0", b"\3\0\1\0", b"\7\0\1\0ab", b"\xff\xff\1\0"]
)
def test_an_attribute_that_lies_about_its_length_is_refused(data: bytes) -> None:
    with pytest.raises(ParseError):
        netlink.attributes(data)


def test_integers_have_the_width_and_sign_that_were_sent() -> None:
    assert netlink.unsigned(b"\xfe\xff\xff\xff") == 0xFFFFFFFE
    assert netlink.signed(b"\xfe\xff\xff\xff") == -2
    assert netlink.unsigned(b"\x80") == 128
    assert netlink.signed(b"\x80") == -128


@pytest.mark.parametrize("value", [b"", b"abc", bytes(16)])
def test_an_integer_of_an_odd_width_is_refused(value: bytes) -> None:
    with pytest.raises(ParseError):
        netlink.unsigned(value)


def test_an_address_of_an_odd_length_is_refused() -> None:
    with pytest.raises(ParseError):
        netlink.ip_address(b"12345")


def test_a_name_that_is_not_utf8_stays_legible() -> None:
    assert netlink.text(b"eth\xff\0rubbish") == "eth\\xff"


@given(st.binary(max_size=256))
def test_any_datagram_is_read_or_refused(data: bytes) -> None:
    try:
        netlink.portion(data, 7, "RTM_GETLINK")
    except (ParseError, OSError):
        event("refused")
