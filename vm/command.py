"""Runs the programs of the host that a virtual machine is built with."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Unavailable(Exception):
    """The virtual machine cannot be built or booted; the text is one sentence."""


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What the command prints; if it fails, one line that can be pasted into a shell."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise Unavailable(f"cannot run {words[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise Unavailable(f"{shlex.join(words)} failed: {last_line(done.stderr or done.stdout)}")
    return done.stdout


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def say(text: str) -> None:
    """Progress goes to stderr: stdout belongs to the command in the guest."""
    print(f"vm: {text}", file=sys.stderr, flush=True)
