"""``python -m tests.kernels``: run every BPF program on every kernel, and write docs/kernels.md.

It takes ten minutes for each kernel, and root. ``--quick`` loads and attaches, and runs no test.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from tests.live.objects import Kernel, Loaded
from vm import kernels

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
ASKING = ("-m", "tests.live.objects")

HEAD = """\
# BPF programs on kernels

Made by `make kernels`, which loads and attaches every program on every kernel, and runs the live
tests of every question there: the numbers of a known workload, compared with an independent count.
(`make kernels QUICK=--quick` loads and attaches alone.)
A program that a kernel cannot take is replaced by another of its group, or by what the last column
says. The first kernel is the development machine's (cgroup v1 with an empty v2 tree, without
kprobes and function tracer); the others are Debian's in QEMU (pure cgroup v2).
"""


def main() -> None:
    """Ask all kernels; write the page."""
    quick = sys.argv[1:]
    asked = [_asked((sys.executable, *ASKING, *quick))]
    for kernel in kernels.KERNELS:
        words = (sys.executable, "-m", "vm", kernel.version, "--timeout", "1500", "--")
        asked.append(_asked((*words, "python3", *ASKING, *quick)))
    PAGE.write_text("\n".join(page(asked)) + "\n")


def _asked(words: tuple[str, ...]) -> Kernel:
    said = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
    return msgspec.json.decode(said.splitlines()[-1], type=Kernel)


def page(asked: list[Kernel]) -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    if any(kernel.questions for kernel in asked):
        yield "## Questions\n\nTheir live tests; what failed, or cannot be tried there, is said.\n"
        yield from _table(["question", *(k.release for k in asked)], _questions(asked))
        yield ""
    yield "## Objects\n\nWhat each object hooks there, or why it cannot.\n"
    yield from _table(["object", *(k.release for k in asked), "else"], _objects(asked))


def _questions(asked: list[Kernel]) -> Iterator[list[str]]:
    for name in sorted({name for kernel in asked for name in kernel.questions}):
        yield [name, *(_outcome(kernel, name) for kernel in asked)]


def _outcome(kernel: Kernel, name: str) -> str:
    tested = kernel.questions.get(name)
    if tested is None:
        return "not run"
    parts = [f"{tested.passed} passed"]
    parts += [f"**{tested.failed} failed**"] if tested.failed else []
    parts += [f"{tested.skipped} cannot here"] if tested.skipped else []
    return ", ".join(parts)


def _objects(asked: list[Kernel]) -> Iterator[list[str]]:
    names = [loaded.name for loaded in asked[0].objects]
    for name in names:
        there = [next(o for o in kernel.objects if o.name == name) for kernel in asked]
        yield [name, *(_state(one) for one in there), there[0].falls_back]


def _state(loaded: Loaded) -> str:
    if loaded.refused is not None:
        return f"✗ {loaded.refused}"
    hooked = [f"✓ {p.section}" for p in loaded.programs if p.section]
    left = [f"– {p.state}" for p in loaded.programs if not p.section]
    return "<br>".join(dict.fromkeys((*hooked, *left)))


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


if __name__ == "__main__":
    main()
