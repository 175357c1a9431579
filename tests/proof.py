"""``python -m tests.proof``: prove every case here and in the VM, and write docs/proof.md.

It takes a minute for each case, and root. With files given (what ``whybox prove -o json`` printed,
each after the name of its kernel and an equals sign) nothing is run: the page is written from them.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from whybox import cases
from whybox.lab.prove import Proof, Step, load

PAGE = Path(__file__).parents[1] / "docs" / "proof.md"
VM = "6.1"
ASKING = ("-m", "whybox", "prove", "-o", "json")

HEAD = """\
# What is proved

Made by `make proof`, which runs `whybox prove` on the development machine (cgroup v1 with an empty
v2 tree) and on Debian's kernel in QEMU (pure cgroup v2). A case is proved where its lab, healthy,
is clear; every look-alike is not found; reproduced in each way it is found, and nothing else is
that does not follow from it; the printed cure, applied, makes it clear; and nothing is left behind.
What is reproduced is judged by all cases.
"""

MATRIX = """\
## Labs and cases

Each row is a trouble that was made, each column a case that judged it. ● is what the lab is about,
○ follows from it or is declared to stand beside it, ✗ would be a false alarm. Where kernels differ
they are named.
"""

Proofs = Mapping[str, Mapping[str, Proof]]


def main() -> None:
    """Prove, or read what was proved; write the page."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    if given:
        said = {kernel: Path(file).read_bytes() for kernel, file in given.items()}
    else:
        in_vm = (sys.executable, "-m", "vm", VM, "--timeout", "3000", "--", "python3")
        said = {
            f"{os.uname().release}, v1": _asked((sys.executable, *ASKING)),
            f"{VM}, v2": _asked((*in_vm, *ASKING, "--i-mean-it")),
        }
    proofs = {kernel: _decoded(text) for kernel, text in said.items()}
    PAGE.write_text("\n".join(page(proofs)) + "\n")


def _asked(words: Sequence[str]) -> bytes:
    # 1: a case was not proved, which the page then says.
    done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(words)}: {done.returncode}")
    return done.stdout


def _decoded(text: bytes) -> dict[str, Proof]:
    # A console may say more before it.
    proofs = msgspec.json.decode(text[text.index(b"[") :], type=list[Proof])
    return {proof.case: proof for proof in proofs}


def page(proofs: Proofs) -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    yield from _table(["case", *proofs], _outcomes(proofs))
    yield ""
    for kernel, by_case in proofs.items():
        for proof in by_case.values():
            yield from (f"* {proof.case} on {kernel}: {words}" for words in proof.failures)
    yield MATRIX
    names = cases.names()
    yield from _table(["lab", *(str(n) for n, _ in enumerate(names, 1))], _rows(names, proofs))
    yield ""
    yield from (f"{n}. {name}" for n, name in enumerate(names, 1))


def _outcomes(proofs: Proofs) -> Iterator[list[str]]:
    for name in cases.names():
        yield [name, *(_outcome(by_case.get(name)) for by_case in proofs.values())]


def _outcome(proof: Proof | None) -> str:
    if proof is None:
        return "not run"
    if proof.impossible is not None:
        return f"cannot here: {proof.impossible}"
    ways, others = len(proof.reproduced), len(proof.look_alikes)
    said = f"{ways} way{'s' if ways != 1 else ''}, {others} look-alike{'s' if others != 1 else ''}"
    return f"{'✓' if proof.proved else '✗ **not proved**'} {said}, {proof.seconds:.0f} s"


def _rows(names: Sequence[str], proofs: Proofs) -> Iterator[list[str]]:
    for name in names:
        for scenario in _scenarios(name, proofs):
            yield [f"{name}: {scenario}", *(_cell(name, scenario, n, proofs) for n in names)]


def _scenarios(name: str, proofs: Proofs) -> list[str]:
    made = (by_case[name].reproduced for by_case in proofs.values() if name in by_case)
    return list(dict.fromkeys(step.scenario for steps in made for step in steps))


def _cell(name: str, scenario: str, column: str, proofs: Proofs) -> str:
    ran = {kernel: _step(by_case.get(name), scenario) for kernel, by_case in proofs.items()}
    hit = {kernel: column in step.found for kernel, step in ran.items() if step is not None}
    if not any(hit.values()):
        return ""
    sign = "●" if column == name else "○" if column in _declared(name) else "✗"
    where = [kernel for kernel, found in hit.items() if found]
    return sign if len(where) == len(hit) else f"{sign} {', '.join(where)}"


def _step(proof: Proof | None, scenario: str) -> Step | None:
    steps = () if proof is None else proof.reproduced
    return next((step for step in steps if step.scenario == scenario), None)


def _declared(name: str) -> tuple[str, ...]:
    return (*cases.load(name).explains, *load(name).also)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


if __name__ == "__main__":
    main()
