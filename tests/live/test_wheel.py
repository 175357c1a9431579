"""The wheel: built by pip alone from a clean checkout, and tracing where there is no compiler."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.live import footprint
from tests.live.conftest import require
from vm.tree import sources
from whybox.kernel.bpf import ability
from whybox.kernel.host import Host
from whybox.lab import workload
from whybox.lab.box import Box

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="a guest has no package registry: proved on the host"
)


def fetching(*words: str) -> None:
    """Run a command that needs packages: the tests' engine has a network of its own, with none."""
    footprint.at_home(lambda: subprocess.run(words, check=True), seconds=240)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git knows, and nothing that was built."""
    clean = tmp_path_factory.mktemp("checkout")
    for name in sources(ROOT):
        place = clean / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place)
    return clean


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    words = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(made),
        str(checkout),
    )
    fetching(*words)
    (found,) = made.iterdir()
    return found


def test_every_program_is_in_the_wheel_compiled_and_small(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    source = checkout / "src"
    programs = {str(f.relative_to(source)) for f in source.rglob("*.bpf.c")}
    objects = {name for name in sizes if name.endswith(".bpf.o")}
    assert objects == {name.removesuffix("c") + "o" for name in programs}
    assert len(objects) >= 13
    assert all(sizes[name] < 200_000 for name in objects)


def test_it_traces_on_a_machine_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    """A virtual environment of its own, and a path on which there is no program at all."""
    require(ability.why_not(Host()))
    subprocess.run((sys.executable, "-m", "venv", str(tmp_path / "venv")), check=True)
    python = tmp_path / "venv" / "bin" / "python"
    fetching(str(python), "-m", "pip", "install", "-q", str(wheel))
    with Box("wheel") as box:
        box.start(workload.burn())
        words = ("trace", "runqueue", f"whybox://{box.name}", "--for", "1s")
        traced = subprocess.run(
            (str(python), "-m", "whybox", *words),
            env={"PATH": "/nonexistent", "HOME": str(tmp_path), "LANG": "C.UTF-8"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert traced.returncode == 0, traced.stderr
    assert "attached: tp_btf/sched_switch" in traced.stdout
    assert "no event was lost" in traced.stdout
    assert not os.path.exists(tmp_path / "venv" / "lib" / "ziglang")
