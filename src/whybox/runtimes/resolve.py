"""From a word to a target: names are the engines', everything else is the kernel's.

A whole id never needs an engine. Where one is dead or hangs, its names are missing and a note says
so; what the kernel shows is found all the same.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from msgspec import Struct, structs

from whybox.kernel import cgroup, finding
from whybox.kernel.cgroup import UNIFIED, Hierarchy
from whybox.kernel.host import Host, printable
from whybox.kernel.target import Target
from whybox.runtimes.docker import Docker, Listed, named
from whybox.runtimes.podman import Podman

#: Words like ``docker://web``: whose containers to look among.
RUNTIMES = ("docker", "podman", "containerd", "cri-o", "lxc", "nspawn", "whybox")
_FULL_ID = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"[^/]+\.(service|scope|slice|socket|mount|swap)")
_SHOWN_AT_MOST = 8
#: An engine that hangs costs a second; one that alone may know a name is waited for so long again.
PATIENCE_SECONDS = 3.0


class TargetError(Exception):
    """No target for a word; the message is one sentence for the person who typed it."""


class Resolution(Struct, frozen=True, kw_only=True):
    """The targets, and what could not be learned about them."""

    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()


class Candidate(Struct, frozen=True, kw_only=True):
    """A container that a word may mean: one that the kernel shows, or that an engine lists."""

    id: str
    name: str
    runtime: str

    def __str__(self) -> str:
        short = self.id[:12] if _FULL_ID.fullmatch(self.id) else self.id
        also = "" if self.name == self.id else f" ({self.name})"
        return printable(f"{self.runtime}://{short}{also}")


def resolve(host: Host, words: Sequence[str]) -> Resolution:
    """The target that each word means, each once; raises TargetError."""
    known = Directory(host)
    found: dict[str, Target] = {}
    for word in words:
        target = _resolved(known, word)
        found.setdefault(target.id, target)
    return Resolution(targets=tuple(found.values()), notes=known.notes(found.values()))


def everything(host: Host) -> Resolution:
    """Every container that the kernel shows, with the names that one list of each engine gives."""
    known = Directory(host)
    found = tuple(
        named(target, known.listed[id][1]) if id in known.listed else target
        for id, target in known.living.items()
    )
    return Resolution(targets=found, notes=known.notes(found))


class Directory:
    """Who is there. Each engine is asked for a list once, and not again after it failed."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.engines = engines(host)
        self.failures: dict[str, OSError] = {}

    @cached_property
    def living(self) -> Mapping[str, Target]:
        """What the kernel shows, by id."""
        return {target.id: target for target in finding.containers(self.host)}

    @cached_property
    def listed(self) -> Mapping[str, tuple[Docker, Listed]]:
        """What the engines list, dead containers too, by id."""
        found: dict[str, tuple[Docker, Listed]] = {}
        for engine in self.engines:
            try:
                lines = engine.list() if engine.runtime not in self.failures else ()
            except OSError as error:
                self.failures[engine.runtime] = error
                continue
            for line in lines:
                found.setdefault(line.id, (engine, line))
        return found

    def ask_again(self) -> bool:
        """Give engines that were too slow more time for their list, once; whether there were any.

        A machine without CPU to spare is what people ask about, and its engine is slow too.
        """
        slow = [e for e in self.engines if isinstance(self.failures.get(e.runtime), TimeoutError)]
        late = [engine for engine in slow if engine.seconds < PATIENCE_SECONDS]
        for engine in late:
            engine.seconds = PATIENCE_SECONDS
            del self.failures[engine.runtime]
        if late:
            self.__dict__.pop("listed", None)
        return bool(late)

    @property
    def silent(self) -> bool:
        """Whether no engine answered."""
        return all(engine.runtime in self.failures for engine in self.engines)

    def candidates(self, runtime: str | None) -> Iterator[Candidate]:
        """Everyone, or those of one runtime."""
        for id in sorted({*self.living, *self.listed}):
            engine, line = self.listed.get(id, (None, None))
            # The kernel knows podman's containers behind a Docker socket for what they are.
            mine = self.living[id].runtime if id in self.living else engine and engine.runtime
            if mine and runtime in (None, mine, engine and engine.runtime):
                yield Candidate(id=id, name=line.name if line else id, runtime=mine)

    def target(self, id: str) -> Target:
        """One of the candidates."""
        if id in self.living:
            return self.described(self.living[id])
        engine, line = self.listed[id]
        try:
            dead = engine.dead(id)
        except OSError as error:
            # It listed the container; that it cannot inspect it may be a lock that somebody holds.
            raise TargetError(
                f"{printable(line.name)} has no process, and {engine.runtime} {said(error)}"
            ) from None
        if dead is None:
            raise TargetError(
                f"{printable(line.name)} runs, says {engine.runtime}, but none of its processes "
                "can be seen from here: run whybox on its host"
            )
        return dead

    def described(self, target: Target) -> Target:
        """The target with what its engine knows of it, if that answers."""
        line = None
        if "listed" in self.__dict__ and target.id in self.listed:
            engine, line = self.listed[target.id]
        else:
            mine = [engine for engine in self.engines if engine.runtime == target.runtime]
            if not mine:
                return target
            engine = mine[0]
        if engine.runtime not in self.failures:
            try:
                return engine.describe(target)
            except OSError as error:
                self.failures[engine.runtime] = error
        return target if line is None else named(target, line)

    def notes(self, targets: Iterable[Target]) -> tuple[str, ...]:
        """What an engine should have said and did not; one that is not there owes nothing."""
        asked = {target.runtime for target in targets}
        return tuple(
            f"{runtime} {said(error)}: names, images and exit records may be missing"
            for runtime, error in self.failures.items()
            if runtime in asked or not isinstance(error, FileNotFoundError)
        )


def engines(host: Host) -> tuple[Docker, ...]:
    """The engines that can be asked."""
    docker, podman = Docker(host), Podman(host)
    # Where Docker's socket is a link to podman's, there is one engine and not two.
    same = podman.present and os.path.realpath(docker.path) == os.path.realpath(podman.path)
    return (podman,) if same else (docker, podman)


def said(error: OSError) -> str:
    """What an engine did, to follow its name."""
    return printable(error.strerror or str(error))


def _resolved(known: Directory, word: str) -> Target:
    scheme, separator, rest = word.partition("://")
    try:
        if not separator:
            return _plain(known, word)
        if scheme in RUNTIMES:
            return _named(known, word, rest, scheme)
        if scheme in _SCHEMES:
            return known.described(_SCHEMES[scheme](known.host, rest))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise TargetError(printable(f"{word}: {where}{error.strerror or error}")) from None
    ways = ", ".join(f"{name}://" for name in (*RUNTIMES, *_SCHEMES))
    raise TargetError(f"{printable(scheme)}:// is no kind of target; there are {ways} and self")


def _plain(known: Directory, word: str) -> Target:
    if word == "self":
        return finding.myself(known.host)
    if word.startswith("pod/"):
        raise TargetError(
            f"{printable(word)}: pods are not supported yet; give the id of one of its "
            "containers, as crictl ps shows it"
        )
    return _named(known, word, word, None)


def _named(known: Directory, word: str, name: str, runtime: str | None) -> Target:
    if _FULL_ID.fullmatch(name) and name in known.living:
        living = known.living[name]
        if runtime in (None, living.runtime):
            return known.described(living)
    everyone = tuple(known.candidates(runtime))
    hit = _hit(everyone, word, name)
    if hit is None and runtime is None and _UNIT.fullmatch(name) and _unit_groups(known.host, name):
        return known.described(_unit(known.host, name))
    if hit is None and known.ask_again():
        everyone = tuple(known.candidates(runtime))
        hit = _hit(everyone, word, name)
    if hit is not None:
        return known.target(hit.id)
    raise _nobody(known, word, name, everyone)


def _hit(everyone: Sequence[Candidate], word: str, name: str) -> Candidate | None:
    for fits in _ORDER:
        hits = [candidate for candidate in everyone if fits(candidate, name)]
        if len(hits) > 1:
            raise TargetError(f"{printable(word)} may be any of {_shown(map(str, hits))}")
        if hits:
            return hits[0]
    return None


def _begins(candidate: Candidate, name: str) -> bool:
    # Only an id of an engine is too long to be typed.
    whole = _FULL_ID.fullmatch(candidate.id)
    return bool(whole and name and candidate.id.startswith(name))


#: How a word is matched: the first way that fits anybody decides.
_ORDER: tuple[Callable[[Candidate, str], bool], ...] = (
    lambda candidate, name: candidate.name == name,
    lambda candidate, name: candidate.id == name,
    _begins,
)


def _nobody(known: Directory, word: str, name: str, everyone: Sequence[Candidate]) -> TargetError:
    sentence = f"No such container: {printable(word)}"
    if known.silent:
        if _FULL_ID.fullmatch(name):
            return TargetError(
                f"{sentence} has a process, and no engine answered what became of it"
            )
        ids = [str(c).partition("://")[2] for c in everyone]
        if not ids:
            return TargetError(f"{sentence}; no engine answered, and the kernel shows no container")
        return TargetError(f"{sentence}; no engine answered, so give an id: {_shown(ids)}")
    from difflib import get_close_matches  # for a mistake only

    near = get_close_matches(name[:256], [c.name for c in everyone], cutoff=0.5)
    sentence += f"; nearest: {_shown(printable(n) for n in near)}" if near else ""
    hidden = [f"{runtime} {said(e)}" for runtime, e in known.failures.items() if _owes(e)]
    return TargetError(sentence + (f"; and {' and '.join(hidden)}" if hidden else ""))


def _owes(error: OSError) -> bool:
    return not isinstance(error, FileNotFoundError)


def _shown(items: Iterable[str]) -> str:
    listed = list(items)
    more = len(listed) - _SHOWN_AT_MOST
    return ", ".join(listed[:_SHOWN_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _pid(host: Host, text: str) -> Target:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise TargetError(f"pid://{printable(text)}: a process id is a number")
    try:
        return finding.from_pid(host, int(text))
    except OSError:
        raise TargetError(f"pid://{text}: there is no such process") from None


def _cgroup(host: Host, text: str) -> Target:
    path = "/" + text.strip("/")
    for tree in cgroup.hierarchies(host):
        # As the shell completes it: /sys/fs/cgroup/memory/x is /x.
        if (path + "/").startswith(tree.mountpoint + "/"):
            path = "/" + path[len(tree.mountpoint) :].strip("/")
            break
    found = None if ".." in path.split("/") else finding.from_group(host, path)
    if found is None:
        raise TargetError(f"cgroup://{printable(path)}: no control group there has a process")
    return found


def _unit(host: Host, text: str) -> Target:
    name = text if _UNIT.fullmatch(text) else f"{text}.service"
    paths = _unit_groups(host, name)
    if not paths:
        raise TargetError(f"unit://{printable(name)}: no such unit has a control group")
    if len(paths) > 1:
        ways = _shown(printable(f"cgroup://{path}") for path in paths)
        raise TargetError(f"unit://{printable(name)} may be any of {ways}")
    found = finding.from_group(host, paths[0], runtime="systemd")
    if found is None:
        raise TargetError(f"unit://{printable(name)}: it has no process")
    return structs.replace(found, name=name) if found.runtime == "systemd" else found


def _unit_groups(host: Host, name: str) -> tuple[str, ...]:
    for tree in _systemd_trees(host):
        places = cgroup.below(host, tree.mountpoint)
        tail = f"/{name}"
        found = tuple(p[len(tree.mountpoint) :] for p in places if p.endswith(tail))
        if found and "/" not in name:
            usual = f"/system.slice/{name}"
            return (usual,) if usual in found else found
    return ()


def _systemd_trees(host: Host) -> tuple[Hierarchy, ...]:
    """Where systemd keeps every unit; elsewhere only those with a limit have a group."""
    trees = cgroup.hierarchies(host)
    own = [t for t in trees if "name=systemd" in t.controllers or UNIFIED in t.controllers]
    return tuple(own or trees)


_SCHEMES: Mapping[str, Callable[[Host, str], Target]] = {
    "pid": _pid,
    "cgroup": _cgroup,
    "unit": _unit,
}
