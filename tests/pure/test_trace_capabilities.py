"""``whybox trace capabilities``: what a check means, and how the answer is shown."""

import struct

import pytest

from whybox.kernel import syscalltable
from whybox.kernel.capability import NAMES
from whybox.kernel.capabilityuse import Meaning
from whybox.kernel.capabilityuse import meaning as means
from whybox.kernel.sensors import capabilities as sensor
from whybox.kernel.sensors.capabilities import Check, Flag
from whybox.trace import capabilities
from whybox.trace.capabilities import Answer
from whybox.trace.question import Answered
from whybox.views.trace import text

OWN, HELD, REFUSED = Flag.OWN, Flag.HELD, Flag.REFUSED


def check(
    name: str = "CHOWN", flags: Flag = OWN | HELD, *, call: str | None = "chown", count: int = 1
) -> Check:
    return Check(
        capability=NAMES.index(name),
        flags=flags,
        number=None if call is None else syscalltable.number(call),
        compat=False,
        stack=None,
        count=count,
        pid=7,
        comm="evil\x1b[31m",
    )


def test_a_check_is_decoded_as_the_program_lays_it_out() -> None:
    key = struct.pack("=IiII", 512 + 3, -14, 21, 3)
    value = struct.pack("=QII16s", 9, 70, 0, b"a\xff\0rest")
    found = sensor.check(key, value)
    assert (found.number, found.compat, found.stack) == (3, True, None)
    assert (found.capability, found.flags) == (21, OWN | REFUSED)
    assert (found.count, found.pid, found.comm) == (9, 70, "a\\xff")
    assert sensor.check(struct.pack("=IiII", 1024, 5, 0, 0), value).number is None


@pytest.mark.parametrize(
    ("seen", "path", "meaning"),
    [
        (check(), ("chown_common",), Meaning.USED),
        (check(flags=OWN | REFUSED), ("chown_common",), Meaning.REFUSED),
        (check(flags=HELD), ("ovl_setattr",), Meaning.OVERRIDDEN),
        (check(flags=OWN), (), Meaning.OWNER),
        (check(flags=OWN | HELD | Flag.ENGINE), (), Meaning.ENGINE),
        (check(flags=OWN | REFUSED | Flag.MADE_UP_FOR), (), Meaning.MADE_UP_FOR),
        (check(flags=OWN | REFUSED | Flag.NOAUDIT), (), Meaning.QUIET),
        # access(2) looks with credentials that were made for it.
        (check("DAC_OVERRIDE", flags=HELD, call="faccessat"), (), Meaning.USED),
        # Every mapping asks for it, and whoever has it needs it not.
        (check("SYS_ADMIN"), ("security_vm_enough_memory_mm", "mmap_region"), Meaning.MEMORY),
        (check("SYS_ADMIN", OWN | REFUSED), ("cap_vm_enough_memory",), Meaning.MEMORY),
        (check("SYS_ADMIN"), ("xattr_permission", "ovl_xattr_get"), Meaning.OVERLAY),
        (check("SYS_ADMIN"), ("path_mount",), Meaning.USED),
        # A chown of a file in an overlay is a chown.
        (check(), ("setattr_prepare", "ovl_setattr"), Meaning.USED),
    ],
)
def test_what_a_check_means(seen: Check, path: tuple[str, ...], meaning: Meaning) -> None:
    assert means(seen, path) is meaning


def weighed(*seen: tuple[Check, tuple[str, ...]]) -> Answer:
    all = [(one, path, means(one, path)) for one, path in seen]
    held = 1 << NAMES.index("CHOWN") | 1 << NAMES.index("KILL")
    return capabilities.told(all, held, from_start=False)


ANSWER = weighed(
    (check(count=5), ("chown_common",)),
    (check(count=2, call="fchown"), ("chown_common",)),
    (check("SYS_ADMIN", OWN | REFUSED, call="mount", count=3), ("path_mount",)),
    (check("SYS_ADMIN", OWN | REFUSED, call="mmap", count=90), ("security_vm_enough_memory_mm",)),
)


def test_uses_of_one_capability_are_counted_together() -> None:
    assert [(use.capability, use.count) for use in ANSWER.used] == [("CHOWN", 7)]
    assert [(place.syscall, place.count) for place in ANSWER.used[0].places] == [
        ("chown", 5),
        ("fchown", 2),
    ]
    assert [(use.capability, use.count, use.held) for use in ANSWER.refused] == [
        ("SYS_ADMIN", 3, False)
    ]
    assert (ANSWER.held, ANSWER.unused) == (("CHOWN", "KILL"), ("KILL",))
    assert [(one.capability, one.count) for one in ANSWER.noise] == [("SYS_ADMIN", 90)]


def test_the_minimal_set_in_the_words_of_the_engines() -> None:
    lines = text("capabilities", Answered(answer=ANSWER))
    assert "  Docker, Podman   --cap-drop ALL --cap-add CHOWN" in lines
    assert '        add: ["CHOWN"]' in lines
    assert "held and not used: KILL" in lines
    assert any("not seen" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_who_uses_none_is_run_with_none() -> None:
    lines = text("capabilities", Answered(answer=weighed()))
    assert "no capability was used" in lines
    assert "  Docker, Podman   --cap-drop ALL" in lines
    assert not any("add:" in line for line in lines)
