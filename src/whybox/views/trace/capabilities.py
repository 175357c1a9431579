"""Capabilities: what is used, what is not, and the words to run with no more."""

from collections.abc import Iterator, Sequence

from whybox.trace.capabilities import Answer, Place, Use

#: So many places are shown for each capability, and so many kinds of noise.
MOST_PLACES, MOST_NOISE = 3, 6


def answer(answer: Answer) -> list[str]:
    """What is used and refused, the minimal set, and what the window cannot tell."""
    return [
        *_used(answer),
        *_refused(answer),
        *_unused(answer),
        *_noise(answer),
        *_minimal(answer),
        *_caution(answer),
    ]


def _used(answer: Answer) -> Iterator[str]:
    if not answer.used:
        yield "no capability was used"
        return
    yield "used:"
    for use in answer.used:
        yield from _use(use)


def _refused(answer: Answer) -> Iterator[str]:
    if answer.refused:
        yield "asked for and refused (whether it minds: whybox trace syscalls):"
    for use in answer.refused:
        yield from _use(use)
        if use.held:
            yield "         it holds it, but not over the user namespace that this belongs to"


def _use(use: Use) -> Iterator[str]:
    yield f"  {use.count:>6} {use.capability:<18} {_place(use.places[0])}"
    for place in use.places[1:MOST_PLACES]:
        yield f"  {'':>6} {'':<18} {_place(place)}"
    if len(use.places) > MOST_PLACES:
        yield f"  {'':>6} {'':<18} and elsewhere"


def _place(place: Place) -> str:
    where = place.syscall or "outside of system calls"
    site = "" if place.site is None else f" in {place.site}"
    return f"{where}{site}, {place.count} times, {place.comm} {place.pid}"


def _unused(answer: Answer) -> Iterator[str]:
    if answer.unused:
        yield f"held and not used: {', '.join(answer.unused)}"


def _noise(answer: Answer) -> Iterator[str]:
    if answer.noise:
        yield "left out, for it says nothing about what it needs:"
    for noise in answer.noise[:MOST_NOISE]:
        yield f"  {noise.count:>6} {noise.capability:<18} {noise.what}"
    rest = sum(noise.count for noise in answer.noise[MOST_NOISE:])
    if rest:
        yield f"  {rest:>6} of other kinds"


def _minimal(answer: Answer) -> list[str]:
    names = [use.capability for use in answer.used]
    return [
        "to run with what was used and no more:",
        f"  Docker, Podman   {docker(names)}",
        "  Kubernetes, of the container:",
        *(f"    {line}" for line in kubernetes(names)),
    ]


def docker(names: Sequence[str]) -> str:
    """The flags of ``docker run``.

    >>> docker(["CHOWN", "NET_RAW"])
    '--cap-drop ALL --cap-add CHOWN --cap-add NET_RAW'
    """
    return " ".join(["--cap-drop ALL", *(f"--cap-add {name}" for name in names)])


def kubernetes(names: Sequence[str]) -> list[str]:
    """The same for a container of a pod.

    >>> print("\\n".join(kubernetes(["CHOWN", "NET_RAW"])))
    securityContext:
      capabilities:
        drop: ["ALL"]
        add: ["CHOWN", "NET_RAW"]
    """
    added = ", ".join(f'"{name}"' for name in names)
    add = [f"    add: [{added}]"] if names else []
    return ["securityContext:", "  capabilities:", '    drop: ["ALL"]', *add]


def _caution(answer: Answer) -> Iterator[str]:
    yield "what it did not do in this window was not seen"
    if answer.from_start:
        yield "it was started anew in the window, and seen from when it was found again"
    yield (
        "most of setuid, chown and binding of low ports is done at the start: to see all of it, run"
        " the image with `sleep infinity`, trace that, and exec its own command"
    )
