"""Tracing in bad situations: one sentence and the right status, the answer kept, nothing left."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from elftools.elf.elffile import ELFFile

from tests.live.conftest import require
from tests.live.engine import Engine
from tests.live.test_trouble import WHYBOX, is_one_sentence, whybox
from tests.live.tracing import PATIENCE_SECONDS, asked
from tests.live.users import as_nobody
from whybox import trace
from whybox.kernel import capability
from whybox.kernel.bpf import ability, libbpf, objects
from whybox.kernel.bpf.objects import Refused, loaded
from whybox.kernel.host import Host
from whybox.kernel.sensors.signals import SPEC
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.residue import left_behind, traces


@pytest.fixture(autouse=True)
def _programs() -> None:
    require(ability.why_not(Host()))


@contextmanager
def tracing(*words: str, **more: Any) -> Iterator[tuple["subprocess.Popen[str]", IO[str]]]:
    """The command at work, once it has said that it is attached."""
    process = subprocess.Popen(
        [*WHYBOX, "trace", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        process.kill()
        process.communicate()


def programs_named(name: str) -> int:
    """How many BPF programs of that name the kernel holds, whoever loaded them."""
    found, number = 0, next_program(0)
    while number is not None:
        found += name.encode() in program_info(number)
        number = next_program(number)
    return found


def next_program(after: int) -> int | None:
    import ctypes

    following = ctypes.c_uint32()
    library = libbpf.library()
    failed = library.bpf_prog_get_next_id(ctypes.c_uint32(after), ctypes.byref(following))
    return None if failed else following.value


def program_info(number: int) -> bytes:
    import ctypes

    fd = libbpf.library().bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
    if fd < 0:
        return b""
    info, size = ctypes.create_string_buffer(224), ctypes.c_uint32(224)
    libbpf.call("bpf_obj_get_info_by_fd", fd, info, ctypes.byref(size))
    os.close(fd)
    return info.raw


def test_without_a_question_they_are_listed_with_a_line_each() -> None:
    done = whybox("trace")
    assert done.returncode == 0
    for name in trace.QUESTIONS:
        assert f"\n  {name} " in f"\n{done.stdout}"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("nonsense", "x"), 2, "there is no question 'nonsense'"),
        (("signals",), 2, "name a container"),
        (("signals", "no-such-container"), 3, "no-such-container"),
        (("signals", "x", "--for", "soon"), 2, "no duration"),
        (("signals", "x", "-o", "svg"), 2, "signals has no 'svg': text, json"),
        (("hot", "x", "--frequency", "0"), 2, "--frequency"),
        (("signals", "x", "--list", "vfs_*"), 2, "--list goes with functions"),
    ],
)
def test_wrong_words_get_one_sentence(words: tuple[str, ...], status: int, says: str) -> None:
    done = whybox("trace", *words)
    assert done.returncode == status
    assert is_one_sentence(done.stderr)
    assert says in done.stderr


def test_a_user_without_rights_is_told_so() -> None:
    with Box("trace-trouble") as box:
        box.start(workload.idle())
        done = as_nobody("trace", "runqueue", f"pid://{box.pid}", "--for", "1s")
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "root" in said


def test_ctrl_c_keeps_the_answer_and_leaves_nothing() -> None:
    before = programs_named("on_generate")
    with Box("trace-trouble") as box:
        box.start(workload.ignoring())
        with tracing("signals", box.name, "--for", "60s") as (process, stdout):
            assert "attached: tp_btf/signal_generate" in stdout.readline()
            assert programs_named("on_generate") == before + 1
            for _ in range(7):
                box.signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    assert "interrupted after" in rest
    assert "7 signals, 7 of them ignored" in rest
    assert "no event was lost" in rest
    assert programs_named("on_generate") == before


def test_a_whybox_that_is_killed_outright_leaves_nothing_in_the_kernel() -> None:
    before = programs_named("on_generate")
    with Box("trace-trouble") as box:
        box.start(workload.idle())
        with tracing("signals", box.name, "--for", "60s") as (process, stdout):
            stdout.readline()
            assert programs_named("on_generate") == before + 1
            process.kill()
            process.wait()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while programs_named("on_generate") != before and time.monotonic() < deadline:
            time.sleep(0.05)
    assert programs_named("on_generate") == before


def test_a_container_that_dies_is_told_and_the_trace_ends_early() -> None:
    with Box("trace-trouble") as box:
        box.start(workload.idle())
        with tracing("signals", box.name, "--for", "60s", "-o", "json") as (process, stdout):
            lines = [json.loads(stdout.readline())]
            os.kill(box.pid, signal.SIGKILL)
            box.wait(PATIENCE_SECONDS)
            lines += [json.loads(line) for line in process.communicate(timeout=120)[0].splitlines()]
    assert [line["kind"] for line in lines if line["kind"] != "event"] == [
        "begin", "note", "answer", "end",
    ]  # fmt: skip
    assert lines[0]["schema"] == "whybox.trace/1"
    assert lines[-1]["seconds"] < 30
    kills = [line["event"] for line in lines if line["kind"] == "event"]
    assert any(one["signal"] == "SIGKILL" and one["to_pid"] == box.pid for one in kills)


@pytest.mark.docker
def test_a_container_that_is_started_anew_is_traced_on(engine: Engine, image: str) -> None:
    container = engine.run(image, "sleep", "1000")
    words = ("signals", container.name, "--for", "60s", "-o", "json")
    environment = dict(os.environ, DOCKER_HOST=engine.host)
    with tracing(*words, env=environment) as (process, stdout):
        stdout.readline()
        engine.docker("restart", "--time", "0", container.name)
        told = ""
        while "started anew" not in told:
            told = stdout.readline()
        engine.docker("exec", container.name, "sh", "-c", "kill -WINCH $$")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=PATIENCE_SECONDS)[0].splitlines()
    events = [json.loads(line) for line in rest]
    assert any(e["event"]["signal"] == "SIGWINCH" for e in events if e["kind"] == "event")


@pytest.mark.docker
def test_a_container_that_is_not_there_yet_is_waited_for(engine: Engine, image: str) -> None:
    name = f"whybox-late-{os.getpid()}"
    environment = dict(os.environ, DOCKER_HOST=engine.host)
    with tracing("signals", name, "--for", "500ms", "--wait", "60s", env=environment) as (one, _):
        time.sleep(0.5)
        assert one.poll() is None
        engine.run(image, "sleep", "1000", options=("--name", name))
        said, errors = one.communicate(timeout=PATIENCE_SECONDS)
    assert one.returncode == 0, errors
    assert f"signals of {name}" in said


def test_an_object_that_the_verifier_refuses_is_one_sentence_with_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = bytearray(Path(SPEC.file).read_bytes())
    program = ELFFile(io.BytesIO(broken)).get_section_by_name("tp_btf/signal_generate")
    assert program is not None
    broken[program["sh_offset"]] = 0xFF  # its first instruction: one that there is not
    (tmp_path / "signals.bpf.o").write_bytes(broken)
    monkeypatch.setattr(objects, "SENSORS", tmp_path)
    with pytest.raises(Refused) as refusal, loaded(Host(), SPEC):
        pass
    assert "\n" not in str(refusal.value.strerror)
    assert "signals" in str(refusal.value.strerror)


def test_without_the_library_there_is_a_reason_and_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libbpf.library.cache_clear()
    ability._no_library.cache_clear()
    monkeypatch.setattr(libbpf, "SONAME", "libbpf.so.no")
    try:
        reason = ability.why_not(Host())
    finally:
        libbpf.library.cache_clear()
        ability._no_library.cache_clear()
    assert reason == "libbpf.so.no is not installed (Debian: libbpf1)"


def test_without_types_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ability, "BTF", "/sys/kernel/btf/nothing")
    assert "CONFIG_DEBUG_INFO_BTF" in (ability.why_not(Host()) or "")


def test_capabilities_decide_and_not_the_user(tmp_path: Path) -> None:
    """CAP_BPF with CAP_PERFMON is enough for the kernel, so it is for us."""
    both = sum(1 << capability.NAMES.index(name) for name in ("BPF", "PERFMON"))
    one = 1 << capability.NAMES.index("BPF")
    assert ability.may(both)
    assert ability.may(1 << capability.NAMES.index("SYS_ADMIN"))
    assert not ability.may(one)


def test_a_trace_leaves_nothing_behind() -> None:
    before = traces()
    with Box("trace-trouble") as box:
        box.start(workload.idle())
        for question in ("signals", "runqueue"):
            with asked(question, box.target()):
                pass
    assert left_behind(before) == ()
