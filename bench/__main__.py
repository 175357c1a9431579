"""``python -m bench``: every figure of one run, in two tables; ``python -m bench tracing`` one of
them, and ``python -m bench tracing runqueue disk`` some of its rows."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from bench import clock, tracing
from bench.clock import EMPTY, Took
from tests.live import image as test_image
from tests.live import packages
from tests.live.engine import Engine, missing
from whybox import cases
from whybox.diagnose import diagnose
from whybox.kernel.host import Host
from whybox.kernel.target import Target
from whybox.lab import workload
from whybox.lab.box import Box
from whybox.model import AnyCase

WHYBOX = str(Path(sys.executable).with_name("whybox"))
ROUNDS = 11


class Row(Struct, frozen=True, kw_only=True):
    """One comparison."""

    what: str
    ours: str
    peer: str
    ratio: float
    target: float

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        mark = "✓" if self.ratio <= self.target else "✗"
        return (self.what, self.ours, self.peer, f"{self.ratio:.2f}", f"{mark} ≤ {self.target:g}")


def main() -> int:
    """Measure and print."""
    which, questions = sys.argv[1:2], sys.argv[2:]
    if which != ["tracing"]:
        _commands()
    _tracing([s for s in tracing.SUBJECTS if not questions or s.question in questions])
    return 0


def _commands() -> None:
    with _engine() as engine:
        rows = [*_start_up(), *_window(), *_box(engine)]
    from whybox.views import table

    table.show(
        ("what", "whybox", "compared with", "ratio", "target"),
        [row.cells() for row in rows],
        colour=sys.stdout.isatty(),
    )


def _tracing(subjects: Sequence[tracing.Subject]) -> None:
    packages.ensure(packages.PEERS)
    from whybox.views import table

    print("CPU time of a loop in a container while it is traced, to that of the loop alone")
    table.show(
        ("question", "tracer", "ratio", "lowest", "highest", "ms in programs", "target"),
        [result.cells() for result in tracing.measure(subjects)],
        colour=sys.stdout.isatty(),
    )


@contextlib.contextmanager
def _engine() -> Iterator[Engine | None]:
    if (reason := missing()) is not None:
        print(f"no docker to compare with: {reason}", file=sys.stderr)
        yield None
        return
    with Engine() as engine:
        yield engine


def _row(what: str, ours: Took, peer: Took, name: str, target: float) -> Row:
    return Row(
        what=what,
        ours=f"{ours.wall_s * 1e3:.0f} ms ({ours.cpu_s * 1e3:.0f} CPU)",
        peer=f"{name}: {peer.wall_s * 1e3:.0f} ms ({peer.cpu_s * 1e3:.0f} CPU)",
        ratio=ours.wall_s / peer.wall_s,
        target=target,
    )


def _start_up() -> list[Row]:
    with Box("bench") as box:
        box.start(workload.idle())
        looked = (WHYBOX, "diagnose", box.name, "--window", "0s")
        empty, version, zero = clock.in_turns(
            ROUNDS,
            lambda: clock.command(EMPTY),
            lambda: clock.command((WHYBOX, "--version")),
            lambda: clock.command(looked),
        )
    budget = Took(0.3, 0.3)
    return [
        _row("whybox --version", version, empty, "empty interpreter", 3),
        _row("whybox diagnose BOX --window 0s", zero, budget, "budget", 1),
    ]


def _window() -> list[Row]:
    """One window over many targets, without waiting: its cost is CPU time."""
    known = {name: cases.load(name) for name in cases.names()}
    with contextlib.ExitStack() as stack:
        boxes = [stack.enter_context(Box(f"bench-{n}")) for n in range(8)]
        for box in boxes:
            box.start(workload.idle())
        targets = [box.target() for box in boxes]
        one, eight = clock.in_turns(
            ROUNDS, _diagnosing(targets[:1], known), _diagnosing(targets, known)
        )
    name = "8 x one target"
    return [
        Row(
            what=f"one window of 8 targets, {len(known)} cases",
            ours=f"{eight.cpu_s * 1e3 / 8:.1f} ms CPU a target",
            peer=f"{name}: {one.cpu_s * 1e3:.1f} ms CPU a target",
            ratio=eight.cpu_s / (8 * one.cpu_s),
            target=1,
        )
    ]


def _diagnosing(targets: list[Target], known: dict[str, AnyCase]) -> Callable[[], Took]:
    return lambda: clock.call(lambda: diagnose(Host(), targets, known))


def _box(engine: Engine | None) -> list[Row]:
    if engine is None:
        return []
    image = test_image.load(engine)
    environment = {"DOCKER_HOST": engine.host}
    words = ("docker", "run", "--rm", "--network", "none", image, "true")
    docker, box = clock.in_turns(
        ROUNDS,
        lambda: clock.command(words, environment),
        lambda: clock.call(_one_box),
    )
    return [_row("a lab's box: make, run, remove", box, docker, "docker run --rm", 0.2)]


def _one_box() -> None:
    with Box("bench") as box:
        box.start(lambda: os._exit(0))
        box.wait(10)


sys.exit(main())
