"""One run: QEMU without KVM and without a network, the command's output, its exit status.

The kernel's console, the command's output and its status each have a channel of their own (a serial
port and two virtio ports), so none can garble another.
"""

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from vm import image, tree
from vm.boot import BootFiles
from vm.command import Unavailable, last_line
from vm.emulator import Emulator

TIMED_OUT = 124
"""As timeout(1) says it."""
KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # with -no-reboot: a panic ends QEMU at once
    "apparmor=0",  # dockerd would insist on apparmor_parser
    "psi=1",  # Debian builds it in, switched off
    # Emulated, one counter serves all CPUs. The kernel would doubt it and read the HPET instead,
    # and each reading of that is an exit to the emulator.
    "tsc=reliable",
    "mitigations=off",  # page-table isolation is slow under emulation, and guards nothing here
)


class Machine(Struct, frozen=True, kw_only=True):
    """Everything that has been built for it."""

    emulator: Emulator
    boot: BootFiles
    root_disk: Path
    memory: str = "2G"


def execute(machine: Machine, command: Sequence[str], *, timeout: float, console: Path) -> int:
    """Boot, run the command, copy its output to stdout; the command's exit status."""
    with _folder(command) as folder:
        status = folder / "status"
        line = qemu_command(machine, folder, console=f"file,path={console}")
        with _qemu(line, folder) as qemu:
            finished = _copy_output(qemu, time.monotonic() + timeout)
        if not finished:
            return TIMED_OUT
        text = status.read_text() if status.exists() else ""
        code = exit_status(text)
        if code is None:
            raise Unavailable(_why_no_status(text, folder, console))
        return code


def shell(machine: Machine) -> None:
    """A shell in the guest on this terminal, on the kernel's console."""
    with _folder(("bash", "-i")) as folder:
        line = qemu_command(machine, folder, console="stdio,signal=off", output=os.devnull)
        subprocess.run([*line[:-1], f"{line[-1]} whybox.shell"], check=False)


def qemu_command(
    machine: Machine, folder: Path, *, console: str, output: str = "/dev/stdout"
) -> list[str]:
    """The last word is the kernel's command line. The output is a file to QEMU, not its stdio:
    there, the end of the input would close the port."""
    firmware = [word for path in machine.emulator.firmware for word in ("-L", str(path))]
    return [
        *("setpriv", "--pdeathsig", "KILL", machine.emulator.program, *firmware),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"),
        *("-accel", "tcg,thread=multi", "-cpu", "max,la57=off"),  # a fifth level is slower
        *("-smp", "2", "-m", machine.memory),
        *("-chardev", f"{console},id=console", "-serial", "chardev:console"),
        *("-device", "virtio-serial"),
        *_port("output", output),
        *_port("status", str(folder / "status")),
        *_disk(machine.root_disk, "snapshot=on,cache=unsafe"),
        *_disk(machine.boot.modules_disk, "readonly=on"),
        *_disk(folder / "tree.tar", "readonly=on"),
        *("-kernel", str(machine.boot.kernel), "-initrd", str(machine.boot.initrd)),
        *("-append", " ".join(KERNEL_ARGUMENTS)),
    ]


def exit_status(text: str) -> int | None:
    """What the guest wrote to its status port; None if it never came to the end.

    >>> exit_status("started\\nexit 7\\n"), exit_status("started\\n")
    (7, None)
    """
    for line in text.splitlines():
        word, _, number = line.partition(" ")
        if word == "exit" and number.isdecimal():
            return int(number)
    return None


def _port(name: str, path: str) -> tuple[str, ...]:
    chardev = ("-chardev", f"file,id={name},path={path}")
    return (*chardev, "-device", f"virtserialport,chardev={name},name={name}")


def _disk(path: Path, options: str) -> tuple[str, str]:
    return "-drive", f"file={path},if=virtio,format=raw,{options}"


@contextmanager
def _folder(command: Sequence[str]) -> Iterator[Path]:
    """The files of one run."""
    with tempfile.TemporaryDirectory(prefix="whybox-vm-") as name:
        folder = Path(name)
        tree.pack(image.TREE, command, folder / "tree.tar")
        yield folder


@contextmanager
def _qemu(line: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU, and its end, however this process leaves; killed outright, pdeathsig sees to it."""
    with (
        (folder / "complaints").open("wb") as complaints,
        subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=_environment(folder),
        ) as qemu,
    ):
        try:
            yield qemu
        finally:
            qemu.kill()


def _environment(folder: Path) -> Mapping[str, str]:
    """QEMU keeps what the guest writes to its root in an unlinked file in TMPDIR."""
    return {**os.environ, "TMPDIR": str(folder)}


def _copy_output(qemu: subprocess.Popen[bytes], deadline: float) -> bool:
    """Until QEMU ends: True, or the time is over: False."""
    assert qemu.stdout is not None
    readable = select.poll()
    readable.register(qemu.stdout, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if readable.poll(left * 1000):
            data = os.read(qemu.stdout.fileno(), 1 << 16)
            if not data:
                return True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    return False


def _why_no_status(status: str, folder: Path, console: Path) -> str:
    complaint = (folder / "complaints").read_text(errors="replace")
    log = console.read_text(errors="replace") if console.exists() else ""
    panic = [line for line in log.splitlines() if "Kernel panic" in line]
    what = "died while the command ran" if status else "did not boot"
    words = last_line(complaint or "\n".join(panic) or log)
    return f"the guest {what}: {words} (--console FILE keeps the whole log)"
