"""The command line: one sentence and the right exit status for every bad word."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from whybox import __version__, cli


def run(*words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command as people start it."""
    done = subprocess.run(
        [sys.executable, "-m", "whybox", *words], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("dignose",), "there is no command 'dignose': see whybox --help"),
        (("diagnose",), "name a container, or say --all: see whybox ps"),
        (("diagnose", "--all", "x"), "name a container, or say --all: see whybox ps"),
        (("diagnose", "x", "--window", "soon"), "'soon' is no duration such as 5s, 500ms or 1m"),
        (("diagnose", "x", "--window", "2h"), "'2h' is no duration such as 5s, 500ms or 1m"),
        (("diagnose", "x", "--window", "7200s"), "a window is at most one hour"),
        (("diagnose", "x", "--case", "cpu/nothing"), "there is no case 'cpu/nothing'"),
        (("diagnose", "x", "--area", "gpu"), "there is no area 'gpu': process, cpu"),
        (("diagnose", "x", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("diagnose", "x", "-o", "yaml"), "invalid choice: 'yaml'"),
        (("diagnose", "x", "--from", "f"), "name no container beside it"),
        (("explain", "throttled"), "did you mean cpu/throttled"),
        (("diagnose", "x", "--sysctl", "kernel.pid_max"), "is no network parameter"),
        (("diagnose", "x", "--lookup", "a..b"), "cannot be a name of a host"),
        (("diagnose", "--from", "f", "--lookup", "a.b"), "asks a running container, not a file"),
        (("explain", "\x1b[31m"), r"there is no case '\x1b[31m'"),
        (("lab", "run", "cpu/nothing"), "there is no case 'cpu/nothing': see whybox lab list"),
        (("prove", "--area", "gpu"), "there is no area 'gpu'"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_2(words: tuple[str, ...], sentence: str) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.startswith("whybox: ")
    assert err.count("\n") == 1


def test_a_target_that_is_not_there_is_exit_3() -> None:
    status, out, err = run("diagnose", "pid://4194303", "--window", "0s")
    assert (status, out) == (3, "")
    assert err.startswith("whybox: ")
    assert "4194303" in err


def test_a_file_that_is_not_there_is_exit_3(tmp_path: Path) -> None:
    status, _, err = run("diagnose", "--from", str(tmp_path / "none"))
    assert status == 3
    assert "No such file or directory" in err
    assert "Traceback" not in err


def test_a_damaged_capture_is_exit_3(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"whybox.capture/1\nnot gzip")
    status, _, err = run("diagnose", "--from", str(tmp_path / "f"))
    assert status == 3
    assert "is damaged" in err


def test_version_and_help() -> None:
    assert run("--version") == (0, f"whybox {__version__}\n", "")
    status, out, _ = run("--help")
    assert status == 0
    assert all(name in out for name in cli.COMMANDS)
    assert run()[0] == 2


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command: str) -> None:
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert f"whybox {command}" in out


def test_a_bug_is_told_as_one_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from whybox.cli import schema

    def broken(arguments: object) -> int:
        raise ZeroDivisionError("oh")

    monkeypatch.delenv("WHYBOX_DEBUG", raising=False)
    monkeypatch.setattr(schema, "run", broken)
    assert cli.main(["schema"]) == cli.BUG
    error = capsys.readouterr().err
    assert "a bug in whybox: ZeroDivisionError: oh" in error
    assert "Traceback" not in error


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m whybox schema | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["{", "0"]


def test_what_diagnose_prints_fits_the_published_schema() -> None:
    status, out, _ = run("diagnose", "self", "--window", "0s", "-o", "json")
    report = json.loads(out)
    assert status in (0, 3)
    assert report["schema"] == "whybox.report/1"
    jsonschema.validate(report, json.loads(run("schema")[1]))


def test_version_imports_next_to_nothing() -> None:
    """Start-up is a feature: neither argparse nor msgspec is worth a version number."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "whybox", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not {"argparse", "msgspec", "ctypes"} & {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines()
    }


def imported_by_diagnosing() -> set[str]:
    """The modules that a diagnosis without a window imports."""
    done = subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-m", "whybox"),
            *("diagnose", "self", "--window", "0s", "-o", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_diagnosing_imports_nothing_heavy() -> None:
    heavy = {"pyroute2", "rich", "subprocess", "asyncio", "http.client", "docker", "logging"}
    heavy |= {"shutil", "tempfile", "dataclasses", "random", "json", "elftools"}
    assert not heavy & imported_by_diagnosing()


def test_without_a_window_nothing_of_tracing_is_imported() -> None:
    tracing = ("whybox.trace", "whybox.kernel.sensors", "whybox.kernel.bpf", "whybox.kernel.ftrace")
    recorder = ("whybox.kernel.tracefs", "whybox.kernel.tracetext", "whybox.kernel.tracepages")
    assert not {n for n in imported_by_diagnosing() if n.startswith((*tracing, *recorder))}


def test_the_words_of_the_runtimes_are_learned_only_for_a_cure() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-m", "whybox"),
            *("diagnose", "self", "--window", "0s", "--case", "storage/copy_up"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "whybox.views.text" in done.stderr
    assert "whybox.runtimes.commands" not in done.stderr


def as_a_program(*words: str) -> tuple[int, str]:
    """Exit status and output of ``main`` in a program that says when it is taken apart."""
    program = (
        "import atexit, sys; from whybox.cli import main;"
        "atexit.register(print, 'taken apart', flush=True);"
        f"sys.argv = {['whybox', *words]!r}; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout


def test_what_only_looks_ends_without_being_taken_apart_but_says_all() -> None:
    assert as_a_program("explain", "cpu/throttled") == run("explain", "cpu/throttled")[:2]
    assert as_a_program("explain", "nothing") == (2, "")
    assert as_a_program("lab", "nothing") == (2, "taken apart\n")


def test_nobody_who_reads_the_end_is_told_so_in_one_way_or_none() -> None:
    """A reader that went away, as ``head`` does, is no trouble."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m whybox explain cpu/throttled | head -n 1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.parametrize(("columns", "width"), [("72", 72), ("", 110), ("wide", 110), ("0", 110)])
def test_how_wide_it_writes_is_said_by_the_terminal_or_columns(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whybox.cli.run import terminal_columns

    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.__stdout__", None)
    assert terminal_columns() == width
