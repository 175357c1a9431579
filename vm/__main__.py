"""python -m vm KERNEL -- COMMAND…: run COMMAND in this source tree, under that kernel."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from vm import boot, debian, image, kernels, machine
from vm.command import Unavailable, say
from vm.emulator import emulator

UNAVAILABLE = 3


def main(words: Sequence[str]) -> int:
    options, command = parse(words)
    if options.list:
        print(kernels.table())
        return 0
    signal.signal(signal.SIGTERM, _stop)
    try:
        return _run(options, command)
    except (Unavailable, OSError) as error:
        say(str(error))
        return UNAVAILABLE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Everything after the first -- is the command, whatever it looks like."""
    split = list(words).index("--") if "--" in words else len(words)
    parser = _parser()
    options, command = parser.parse_args(words[:split]), list(words[split + 1 :])
    if not options.list and kernels.find(options.kernel or "") is None:
        known = ", ".join(kernel.version for kernel in kernels.KERNELS)
        parser.error(f"name one of the kernels {known}")
    if not (options.list or options.shell or command):
        parser.error("there is no command; put it after --")
    return options, command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vm",
        usage="python -m vm KERNEL [options] -- COMMAND…",
        description="Run a command in this source tree in a virtual machine.",
        epilog="Exit status: the command's; 124 out of time; 3 no machine could be had.",
    )
    parser.add_argument("kernel", nargs="?", metavar="KERNEL", help="for example 6.1")
    parser.add_argument("--list", action="store_true", help="print the kernels and stop")
    parser.add_argument("--memory", default="2G", help="of the guest (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=1500, help="seconds from boot on (default: %(default)s)"
    )
    parser.add_argument("--console", type=Path, help="keep the kernel's console in this file")
    parser.add_argument("--shell", action="store_true", help="a shell in the guest, no command")
    return parser


def _run(options: argparse.Namespace, command: list[str]) -> int:
    built = _build(options.kernel, options.memory)
    if options.shell:
        machine.shell(built)
        return 0
    with tempfile.NamedTemporaryFile(prefix="whybox-vm-console-") as file:
        console = options.console or Path(file.name)
        status = machine.execute(built, command, timeout=options.timeout, console=console)
    if status == machine.TIMED_OUT:
        say(f"stopped after {options.timeout:g} s")
    return status


def _build(version: str, memory: str) -> machine.Machine:
    kernel = kernels.find(version)
    assert kernel is not None
    debian.ensure_packages()
    return machine.Machine(
        emulator=emulator(kernel.qemu),
        boot=boot.boot_files(kernel),
        root_disk=image.root_disk(),
        memory=memory,
    )


def _stop(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C does: leave through every `finally`."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
