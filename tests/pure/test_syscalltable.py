"""The table of system calls, compared with the headers that the BPF compiler brings."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from whybox.kernel import syscalltable

_DEFINED = re.compile(r"#define\s+__NR_(\w+)\s+(\d+)\s*$", re.MULTILINE)


def headers() -> Path:
    zig = find_spec("ziglang")
    assert zig is not None
    assert zig.submodule_search_locations is not None
    return Path(zig.submodule_search_locations[0], "lib/libc/include")


@pytest.mark.parametrize(
    ("machine", "compat", "header"),
    [
        ("x86_64", False, "x86-linux-any/asm/unistd_64.h"),
        ("x86_64", True, "x86-linux-any/asm/unistd_32.h"),
        ("aarch64", False, "aarch64-linux-any/asm/unistd_64.h"),
    ],
)
def test_every_call_of_the_headers_has_its_name(machine: str, compat: bool, header: str) -> None:
    defined = _DEFINED.findall((headers() / header).read_text())
    assert len(defined) > 300
    for name, number in defined:
        assert syscalltable.name(int(number), machine=machine, compat=compat) == name


def test_what_has_no_name_is_told_by_its_number() -> None:
    assert syscalltable.name(400, machine="x86_64") == "syscall 400"
    assert syscalltable.name(0, machine="mips") == "syscall 0"
    assert syscalltable.name(0, machine="aarch64", compat=True) == "syscall 0"


def test_a_name_leads_back_to_its_number() -> None:
    for machine, number in (("x86_64", 257), ("aarch64", 56)):
        assert syscalltable.number("openat", machine=machine) == number
    assert syscalltable.number("no_such_call", machine="x86_64") is None
