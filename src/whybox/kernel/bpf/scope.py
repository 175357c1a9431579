"""Whom a sensor watches: a container, as BPF programs recognise it (``include/scope.h``).

A container is told by the id of its control group, in whichever tree it has one of its own; where
it has none, by its pid namespace, or as a single process. Packets belong to no task: they are told
by their network namespace.
"""

import os
import struct
from collections.abc import Iterator

from msgspec import Struct

from whybox.kernel.bpf.objects import Object
from whybox.kernel.cgroup import UNIFIED
from whybox.kernel.host import Host
from whybox.kernel.target import Target, place

#: ``enum scope_kind`` and ``enum scope_tree`` of ``scope.h``.
CGROUP, PIDNS, PROCESS, NETNS = 1, 2, 3, 4
TREES = {UNIFIED: 0, "pids": 1, "memory": 2, "cpu": 3, "freezer": 4}

MOST_RULES, MOST_SLOTS = 8, 4096
_KEY, _SLOT, _RULES = struct.Struct("=QII"), struct.Struct("=I"), struct.Struct("=IIIII")
_RULE = struct.Struct("=Ii")
_ZERO = _SLOT.pack(0)


class Mark(Struct, frozen=True, kw_only=True):
    """One thing that the kernel knows a container by."""

    kind: int
    id: int
    tree: int = 0
    level: int = 0

    @property
    def key(self) -> bytes:
        """``struct scope_key``."""
        return _KEY.pack(self.id, self.kind, self.tree)


class Scope:
    """The containers that one object watches, each with a slot from 1 on."""

    def __init__(self, object: Object) -> None:
        self._object = object
        self._slots: dict[str, int] = {}
        self._rules: list[tuple[int, int]] = []
        self._kinds = self._generation = 0

    def add(self, host: Host, target: Target, *, slot: int | None = None) -> int:
        """Watch this one from now on; its slot, a new one if none is given."""
        slot = slot or self._slots.get(target.id) or len(self._slots) + 1
        if slot >= MOST_SLOTS:
            raise OSError(7, f"more than {MOST_SLOTS - 1} containers cannot be watched at once")
        self._slots[target.id] = slot
        for mark in marks(host, target):
            self._admit(mark)
            self._object.map("scopes").set(mark.key, _SLOT.pack(slot))
        self._object.map("rules").set(_ZERO, self._packed())
        return slot

    def add_everybody(self) -> int:
        """Watch the whole host, in slot 1."""
        self._object.map("rules").set(_ZERO, self._packed(everybody=1))
        return 1

    def slot(self, target: Target) -> int | None:
        """The slot of a container that was added."""
        return self._slots.get(target.id)

    def _admit(self, mark: Mark) -> None:
        self._kinds |= 1 << mark.kind
        rule = (mark.tree, mark.level)
        if mark.kind == CGROUP and rule not in self._rules:
            if len(self._rules) == MOST_RULES:
                raise OSError(7, "containers lie at too many levels of the cgroup trees to watch")
            self._rules.append(rule)

    def _packed(self, everybody: int = 0) -> bytes:
        rules = b"".join(_RULE.pack(*rule) for rule in self._rules)
        self._generation += 1
        one_tree = len({tree for tree, _ in self._rules}) == 1
        count = len(self._rules)
        head = _RULES.pack(everybody, self._kinds, count, self._generation, one_tree)
        return head + rules.ljust(MOST_RULES * _RULE.size, b"\0")


def marks(host: Host, target: Target) -> Iterator[Mark]:
    """What the kernel knows a living container by: whom its tasks belong to, and its packets."""
    yield _mark_of_tasks(host, target)
    net = target.namespaces.get("net")
    if net is not None and target.own("net"):
        yield Mark(kind=NETNS, id=net)


def _mark_of_tasks(host: Host, target: Target) -> Mark:
    group = place(host, target.cgroups) if target.runtime != "process" else None
    if group is not None and group.version == 2:
        return Mark(kind=CGROUP, id=host.inode(group.directory), tree=0, level=depth(group.path))
    if group is not None and group.controller in TREES:
        tree = TREES[group.controller]
        return Mark(kind=CGROUP, id=host.inode(group.directory), tree=tree, level=depth(group.path))
    if target.own("pid") and "pid" in target.namespaces:
        return Mark(kind=PIDNS, id=target.namespaces["pid"])
    if target.init is None:
        raise OSError(3, "it is not running, so there is nothing to watch")
    pid = target.init.pid if target.runtime != "self" else os.getpid()
    return Mark(kind=PROCESS, id=pid)


def depth(path: str) -> int:
    """The level of a group: the root's is 0.

    >>> depth("/"), depth("/docker/4f1c")
    (0, 2)
    """
    return len([part for part in path.split("/") if part])
