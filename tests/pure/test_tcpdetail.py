"""What is read of a socket's memory, and the filter that asks for one port."""

import struct

from whybox.kernel.netlink import attributes
from whybox.kernel.tcpdetail import INET_DIAG_REQ_BYTECODE, _of_port, memory


def test_a_short_answer_is_no_answer() -> None:
    assert memory(b"") is None
    assert memory(bytes(32)) is None
    found = memory(struct.pack("=10I", *range(10)))
    assert found is not None
    assert (found.receive_bytes, found.receive_limit_bytes) == (0, 1)
    assert (found.send_limit_bytes, found.send_queued_bytes, found.drops) == (3, 5, 8)


def test_the_filter_steps_past_its_end_to_say_no() -> None:
    program = attributes(_of_port(8080))[INET_DIAG_REQ_BYTECODE]
    ops = [struct.unpack_from("=BBH", program, at) for at in range(0, len(program), 4)]
    assert ops == [(2, 8, 20), (0, 0, 8080), (3, 8, 12), (0, 0, 8080)]
