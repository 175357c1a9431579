"""Running whybox as somebody without rights: with an interpreter that such a user may start."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.live.conftest import require

NOBODY = 65534
SOURCE = Path(__file__).parents[2] / "src"


@functools.cache
def _packages() -> str:
    """whybox and what it needs, copied to where every user may read it, in a box too."""
    import msgspec

    folder = Path(
        tempfile.mkdtemp(prefix="whybox-for-all-", dir="/opt")
    )  # a box has a /tmp of its own
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    for package in (SOURCE / "whybox", Path(msgspec.__file__).parent):
        shutil.copytree(package, folder / package.name)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    return str(folder)


@functools.cache
def _command() -> tuple[str, ...] | None:
    # The tests' own interpreter may lie in a home that is closed to others.
    for python in (sys.executable, "/usr/bin/python3"):
        path = f"PYTHONPATH={_packages()}"
        words = ("/usr/bin/env", path, "PYTHONDONTWRITEBYTECODE=1", python, "-m", "whybox")
        try:
            done = subprocess.run(
                [*words, "schema"], user=NOBODY, capture_output=True, timeout=60, cwd="/"
            )
        except OSError:
            continue
        if done.returncode == 0:
            return words
    return None


def command() -> tuple[str, ...]:
    """The words that start whybox as any user; the test ends here where there are none."""
    words = _command()
    require("no interpreter that another user may run" if words is None else None)
    return words or ()


def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
    """Run whybox without any right."""
    return subprocess.run(
        [*command(), *words],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
