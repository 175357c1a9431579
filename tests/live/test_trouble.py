"""Bad situations: one sentence or an unknown with its reason, the right status, nothing left."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.live.users import as_nobody, command
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.lab.residue import traces

WHYBOX = (sys.executable, "-m", "whybox")


def whybox(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command as people start it."""
    return subprocess.run([*WHYBOX, *words], capture_output=True, text=True, timeout=120, **more)


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What it found of the one target, by case."""
    (target,) = json.loads(done.stdout)["targets"]
    return {finding["case"]: finding for finding in target["findings"]}


def is_one_sentence(text: str) -> bool:
    return text.startswith("whybox: ") and text.count("\n") == 1 and "Traceback" not in text


def test_a_target_that_dies_in_the_window_is_unknown_with_the_reason() -> None:
    with Box("dies") as box:
        box.start(workload.idle())
        killer = threading.Timer(1.5, os.kill, (box.pid, signal.SIGKILL))
        killer.start()
        done = whybox("diagnose", box.name, "--window", "4s", "-o", "json")
        killer.join()
    seen = findings(done)
    assert done.returncode in (0, 3), done.stderr
    assert seen["cpu/throttled"]["verdict"] == "unknown"
    assert "ended" in seen["cpu/throttled"]["summary"]
    assert seen["memory/oom_killed"]["verdict"] == "clear"


def test_names_that_a_terminal_would_obey_are_spelled_out() -> None:
    libc = ctypes.CDLL(None)

    def nasty() -> None:
        libc.prctl(15, b"\x1b[31m\n\xff(x) R 1", 0, 0, 0)  # PR_SET_NAME
        workload.zombies(3)()

    with Box("nasty") as box:
        box.start(nasty)
        time.sleep(1)
        for output in ("text", "json", "md"):
            done = whybox("diagnose", box.name, "--window", "2s", "-o", output)
            assert done.returncode == 0, done.stderr
            assert "\x1b" not in done.stdout
            assert "zombies" in done.stdout
        assert "\x1b" not in whybox("inspect", box.name).stdout
        assert "\x1b" not in whybox("ps", "--window", "0s").stdout


def test_a_task_in_d_state_does_not_hang_it() -> None:
    """The parent of a vfork waits uninterruptibly (state D) until the child execs or ends."""
    libc = ctypes.CDLL(None)

    def vforks() -> None:
        if os.fork() == 0:
            # CLONE_VFORK | CLONE_VM would share the stack; CLONE_VFORK alone waits all the same.
            if libc.syscall(56, 0x4000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
                time.sleep(60)
            os._exit(0)
        workload.idle()()

    with Box("vforks") as box:
        box.start(vforks)
        time.sleep(0.5)
        began = time.monotonic()
        done = whybox("diagnose", box.name, "--window", "1s", "-o", "json")
        assert done.returncode == 0, done.stderr
        assert whybox("inspect", box.name).returncode == 0
        assert time.monotonic() - began < 60


def test_from_inside_without_privileges_it_judges_what_it_sees() -> None:
    with Box("inside") as box:
        box.cpu(cores=0.2)
        box.start(workload.burn())
        output = Path(f"/proc/{box.pid}/root/tmp/report.json")
        box.run(diagnoses_itself(command()))
        deadline = time.monotonic() + 100
        while not output.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        report = json.loads(output.read_text())
    (target,) = report["targets"]
    seen = {finding["case"]: finding for finding in target["findings"]}
    assert seen["cpu/throttled"]["verdict"] == "found"
    assert seen["process/zombies"]["verdict"] == "clear"
    assert seen["process/pid1_ignores_signals"]["verdict"] == "clear"
    assert seen["security/root_is_host_root"]["verdict"] == "clear"
    for finding in seen.values():
        assert finding["summary"]


def diagnoses_itself(words: tuple[str, ...]) -> Callable[[], None]:
    """Run by uid 1000 in the box: the report goes to the box's own /tmp."""

    def program() -> None:
        with open("/tmp/part", "w") as out:
            said = [*words, "diagnose", "self", "--window", "3s", "-o", "json"]
            subprocess.run(said, stdout=out, check=False, cwd="/")
        os.rename("/tmp/part", "/tmp/report.json")

    return program


def test_another_user_gets_reasons_and_not_a_trace() -> None:
    with Box("private") as box:
        box.start(workload.idle())
        done = as_nobody("diagnose", f"pid://{box.pid}", "--window", "0s", "-o", "json")
    assert done.returncode in (0, 3), done.stderr
    unknown = [f for f in findings(done).values() if f["verdict"] == "unknown"]
    assert unknown
    assert all(f["summary"] for f in unknown)


@contextmanager
def silent_daemon(directory: Path) -> Iterator[str]:
    """A socket that accepts and never answers."""
    path = str(directory / "docker.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(8)
        yield f"unix://{path}"


def test_a_daemon_that_hangs_costs_a_moment_and_the_names(tmp_path: Path) -> None:
    with silent_daemon(tmp_path) as address, Box("orphaned") as box:
        box.start(workload.idle())
        began = time.monotonic()
        environment = dict(os.environ, DOCKER_HOST=address)
        done = whybox("diagnose", box.name, "--window", "0s", env=environment)
        listed = whybox("ps", "--window", "0s", env=environment)
        assert time.monotonic() - began < 30
    assert done.returncode == 0, done.stderr
    assert listed.returncode == 0
    assert box.name in listed.stdout
    assert "Traceback" not in listed.stderr


def test_a_capture_on_a_full_disk_is_one_sentence() -> None:
    with Box("full") as box:
        box.start(workload.idle())
        done = whybox("capture", box.name, "--window", "0s", "-f", "/dev/full/x")
        assert (done.returncode, done.stdout) == (3, "")
        assert is_one_sentence(done.stderr)


def test_what_was_captured_is_judged_without_root_as_it_was_live(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    with Box("kept") as box:
        box.cpu(cores=0.2)
        box.start(workload.burn())
        kept = whybox("capture", box.name, "--window", "2s", "-f", str(file))
        assert kept.returncode == 0, kept.stderr
    done = whybox("diagnose", "--from", str(file), "-o", "json")
    finding = findings(done)["cpu/throttled"]
    assert finding["verdict"] == "found"
    assert finding["cures"][0]["commands"][0].startswith("echo ")


def test_two_that_match_are_listed() -> None:
    with Box("twin") as one, Box("twin") as two:
        one.start(workload.idle())
        two.start(workload.idle())
        done = whybox("diagnose", "twin", "--window", "0s")
        assert done.returncode == 3
        assert is_one_sentence(done.stderr)
        assert one.name in done.stderr
        assert two.name in done.stderr


def test_ctrl_c_in_the_window_leaves_nothing() -> None:
    before = traces()
    with Box("watched") as box:
        box.start(workload.idle())
        watcher = subprocess.Popen(
            [*WHYBOX, "diagnose", box.name, "--window", "60s"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(3)
        watcher.send_signal(signal.SIGINT)
        out, err = watcher.communicate(timeout=30)
    assert (watcher.returncode, out) == (130, "")
    assert err == "whybox: interrupted\n"
    assert not traces() - before


def test_inspect_says_what_a_box_is_made_of() -> None:
    with Box("made") as box:
        box.cpu(cores=0.5)
        box.memory(limit_bytes=256 << 20)
        box.pids(limit=40)
        box.start(workload.idle())
        seen = json.loads(whybox("inspect", box.name, "-o", "json").stdout)
        own = {n["kind"] for n in seen["namespaces"] if n["of"] == "own"}
        limits = {one["resource"]: one["effective"] for one in seen["limits"]}
        assert {"ipc", "mnt", "net", "pid", "uts"} <= own
        assert limits == {"cpu": 0.5, "memory": 256 << 20, "pids": 40}
        assert seen["root"]["fstype"] == "overlay"
        assert (seen["rights"]["uid"], seen["rights"]["gid"]) == (1000, 1000)
        assert os.path.isdir(seen["groups"][0]["directory"])


def test_check_tells_every_gap_with_a_reason() -> None:
    said = json.loads(whybox("check", "-o", "json").stdout)
    assert {s["what"] for s in said["sights"]} >= {"rights", "control groups", "kernel log"}
    assert all(s["gap"] is None or len(s["gap"]) > 10 for s in said["sights"])
