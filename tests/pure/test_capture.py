"""Captures: judged elsewhere with the same findings; damage gets one clear sentence."""

import errno
import gzip
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from tests.pure.test_diagnose import Seen, case, no_wait, sees
from whybox.diagnose import judge, observe
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.model import AnyCase, Verdict
from whybox.record import capture

TARGET = Target(id="x", name="web\x1b[31m\n", runtime="docker", init=None, cgroups={"": "/x"})
CASES: dict[str, AnyCase] = {"a/seen": case(sees(42))}


def kept(path: Path, cases: dict[str, AnyCase] = CASES) -> str:
    """A capture file made from one window."""
    host = Host()
    window = observe(host, [TARGET], cases, wait=no_wait)
    layout = {"/proc/self/mountinfo": host.read("/proc/self/mountinfo")}
    capture.write(str(path), window, layout)
    return str(path)


def test_a_recording_is_judged_as_the_live_run_was(tmp_path: Path) -> None:
    live = judge(observe(Host(), [TARGET], CASES, wait=no_wait), CASES)
    again = judge(capture.read(kept(tmp_path / "f"), CASES).window, CASES)
    assert again.targets == live.targets


def test_it_answers_as_the_recorded_machine_was_laid_out(tmp_path: Path) -> None:
    host = capture.read(kept(tmp_path / "f"), CASES).host
    assert host.text("/proc/self/mountinfo") == Host().text("/proc/self/mountinfo")
    host.next_moment()
    assert host.optional_text("/proc/self/mountinfo") is not None
    assert host.optional_text("/proc/self/stat") is None
    assert host.exists("/proc/self")
    assert not host.exists("/proc/1")


def test_a_case_that_the_file_does_not_hold_is_unknown(tmp_path: Path) -> None:
    more = {**CASES, "a/newer": case(sees(1))}
    window = capture.read(kept(tmp_path / "f"), more).window
    verdicts = [f.verdict for f in judge(window, more).targets[0].findings]
    assert verdicts == [Verdict.FOUND, Verdict.UNKNOWN]


def test_a_file_of_something_else_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\x7fELF whatever")
    with pytest.raises(capture.RecordingError, match="is not a whybox capture"):
        capture.read(str(tmp_path / "f"), CASES)


def test_a_newer_file_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"whybox.capture/9\n...")
    with pytest.raises(capture.RecordingError, match=r"whybox.capture/9.*cannot read"):
        capture.read(str(tmp_path / "f"), CASES)


@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_a_sentence_and_never_a_crash(
    tmp_path: Path, where: float, flip: int
) -> None:
    """A byte changed anywhere behind the first line, or (0) the file cut there."""
    path = tmp_path / "damaged"
    raw = bytearray(Path(kept(path)).read_bytes())
    first = len(capture.FORMAT) + 1
    place = first + int(where * (len(raw) - first))
    if flip:
        raw[place] ^= flip
    else:
        del raw[place:]
    path.write_bytes(raw)
    with suppress(capture.RecordingError):
        capture.read(str(path), CASES)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MOST_BYTES", 1000)
    (tmp_path / "f").write_bytes(b"whybox.capture/1\n" + gzip.compress(b" " * 100_000))
    with pytest.raises(capture.RecordingError, match="unpacks to more than"):
        capture.read(str(tmp_path / "f"), CASES)


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kept(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


class Other(Struct, frozen=True):
    """An observation of another shape under the same name."""

    text: str


def test_an_observation_of_another_shape_is_told(tmp_path: Path) -> None:
    path = kept(tmp_path / "f")
    changed = {"a/seen": case(sees(1))}
    changed["a/seen"] = type(changed["a/seen"])(
        **{
            field: getattr(changed["a/seen"], field)
            for field in changed["a/seen"].__struct_fields__
            if field != "observation"
        },
        observation=Other,
    )
    with pytest.raises(capture.RecordingError, match="damaged or of another whybox: a/seen"):
        capture.read(path, changed)


def test_the_seen_type_is_what_is_kept(tmp_path: Path) -> None:
    window = capture.read(kept(tmp_path / "f"), CASES).window
    assert window.targets[0][1][0].observation == Seen(42)
