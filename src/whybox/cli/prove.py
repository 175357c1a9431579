"""``whybox prove``: every case proved on this very kernel."""

import argparse
import os
import sys

from whybox import cases
from whybox.cli import FOUND, OK, Failure, choices
from whybox.kernel.host import Host
from whybox.lab import proofs as kept
from whybox.lab.prove import Proof, Step, impossible, load, prove


def options(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("case", nargs="*", help="only these cases")
    parser.add_argument("--area", metavar="AREA,…", help="only these areas")
    parser.add_argument(
        "--i-mean-it", action="store_true", help="also labs that can harm the machine"
    )
    choices.add_output(parser, "text", "json")


def run(arguments: argparse.Namespace) -> int:
    """Prove them one after the other; 1 if one that could be proved here was not."""
    if os.geteuid() != 0:
        raise Failure("labs make namespaces and control groups: run whybox prove as root")
    chosen = choices.chosen(arguments.area, arguments.case)
    everything = choices.chosen(None, ())
    proofs = []
    for name in chosen:
        lab = load(name)
        reason = impossible(lab, Host(), may_break_kernel=arguments.i_mean_it)
        if reason is not None:
            proofs.append(Proof(case=name, proved=False, impossible=reason))
        else:
            proofs.append(prove(name, lab, everything, choices.note))
        _keep(proofs[-1])
    _print(proofs, arguments.output)
    return OK if all(p.proved or p.impossible for p in proofs) else FOUND


def _keep(proof: Proof) -> None:
    """For ``whybox cases``; that it cannot be kept is no reason to prove nothing."""
    try:
        kept.keep(proof)
    except OSError as error:
        choices.note(f"{kept.path()}: {error.strerror}: whybox cases will not know of this")


def _print(proofs: list[Proof], output: str) -> None:
    if output == "json":
        from whybox.views import json

        print(json.data(proofs))
        return
    from whybox.views import table

    table.show(
        ("case", "healthy", "look-alikes", "reproduced", "cured", "residue", "proved", "took"),
        [_row(proof) for proof in proofs],
        colour=choices.colour(sys.stdout.isatty()),
    )
    for proof in proofs:
        for failure in proof.failures:
            print(f"✗ {proof.case}: {failure}")
        if proof.impossible:
            print(f"? {proof.case}: {proof.impossible}")
    kernel = os.uname().release
    done = sum(proof.proved for proof in proofs)
    print(f"{done} of {len(proofs)} cases proved on Linux {kernel}; {len(cases.names())} known")


def _row(proof: Proof) -> tuple[str, ...]:
    if proof.impossible is not None:
        return (proof.case, *("?",) * 5, "? cannot here", "")
    return (
        proof.case,
        _share((proof.healthy,)),
        _share(proof.look_alikes),
        _share(proof.reproduced),
        _share((proof.cured,)),
        "✗" if proof.residue else "✓ none",
        "✓ proved" if proof.proved else "✗ not proved",
        f"{proof.seconds:.0f} s",
    )


def _share(steps: tuple[Step | None, ...]) -> str:
    good = sum(1 for step in steps if step is not None and step.ok)
    return f"{'✓' if good == len(steps) else '✗'} {good} of {len(steps)}"
