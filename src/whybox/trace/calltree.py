"""What a function calls, as a tree of sums: from the steps of a tracer, task by task.

A call counts where it stands: under the path of functions that led to it. What a task was in when
steps were lost is left out, so that no time is given to the wrong function.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec import Struct

from whybox.kernel.graphsteps import Step

#: A tree of more places than this is cut, and so is a stack of more calls.
MOST_NODES, MOST_DEPTH = 20_000, 128

#: So many tasks may be in the function at once.
MOST_TASKS = 16_384

BUCKETS = 40


class Call(Struct, frozen=True, kw_only=True):
    """All the calls of one function on one path."""

    name: str
    calls: int
    total_ns: int
    """From its begin to its end, sleep and interrupts included."""
    self_ns: int
    """Without what is told of below it; what lies deeper than was traced is in it."""
    longest_ns: int
    calls_to: tuple["Call", ...] = ()
    """What it called, the costliest first."""


@dataclass(slots=True)
class _Node:
    calls: int = 0
    total_ns: int = 0
    below_ns: int = 0
    longest_ns: int = 0
    below: dict[int, "_Node"] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    function: int
    depth: int
    at_ns: int
    node: _Node | None


class Process(Struct, frozen=True, kw_only=True):
    """The calls of one thread."""

    pid: int
    count: int
    sum_ns: int
    longest_ns: int


class CallTree:
    """The sums so far."""

    def __init__(self) -> None:
        self._root = _Node()
        self._tasks: dict[int, list[_Open]] = {}
        self._by_pid: dict[int, _Node] = {}
        self._nodes = 0
        self.buckets = [0] * BUCKETS
        self.broken = 0
        """Calls that were left out, since their begin or their end was lost."""

    def add(self, steps: Iterable[Step]) -> None:
        """Further steps, in the order of their time."""
        for step in steps:
            if step.enters:
                self._enter(step)
            else:
                self._leave(step)

    def forget(self) -> None:
        """Steps were lost: nobody knows what the tasks are in now."""
        self.broken += sum(len(stack) for stack in self._tasks.values())
        self._tasks.clear()

    @property
    def calls(self) -> int:
        """Calls of the function itself that have ended."""
        return sum(node.calls for node in self._root.below.values())

    @property
    def open_calls(self) -> int:
        """Tasks that are in it now."""
        return len(self._tasks)

    def roots(self, name: Callable[[int], str]) -> tuple[Call, ...]:
        """The function with all that it called."""
        return _calls(self._root.below, name)

    def by_pid(self) -> tuple[Process, ...]:
        """Who called it, the costliest first."""
        found = sorted(self._by_pid.items(), key=lambda item: -item[1].total_ns)
        return tuple(
            Process(pid=pid, count=n.calls, sum_ns=n.total_ns, longest_ns=n.longest_ns)
            for pid, n in found
        )

    def _enter(self, step: Step) -> None:
        stack = self._tasks.get(step.pid)
        if stack is None:
            if step.depth or len(self._tasks) >= MOST_TASKS:
                # It was in the function before the trace began, or there are too many.
                return
            stack = self._tasks[step.pid] = []
        while stack and stack[-1].depth >= step.depth:
            stack.pop()
            self.broken += 1
        if len(stack) < MOST_DEPTH:
            above = self._root if not stack else stack[-1].node
            node = None if above is None else self._below(above, step.function)
            stack.append(_Open(step.function, step.depth, step.at_ns, node))

    def _leave(self, step: Step) -> None:
        stack = self._tasks.get(step.pid)
        if stack is None:
            return
        while stack and stack[-1].depth > step.depth:
            stack.pop()
            self.broken += 1
        if stack and stack[-1].depth == step.depth:
            call = stack.pop()
            if call.function == step.function:
                self._count(call, step, stack)
            else:
                self.broken += 1
        if not stack:
            del self._tasks[step.pid]

    def _count(self, call: _Open, step: Step, stack: list[_Open]) -> None:
        took = max(0, step.at_ns - call.at_ns)
        if call.node is not None:
            _sum(call.node, took)
        above = stack[-1].node if stack else None
        if above is not None and call.node is not None:
            above.below_ns += took
        if not stack:
            self.buckets[min(max(took.bit_length() - 1, 0), BUCKETS - 1)] += 1
            if step.pid in self._by_pid or len(self._by_pid) < MOST_TASKS:
                _sum(self._by_pid.setdefault(step.pid, _Node()), took)

    def _below(self, above: _Node, function: int) -> _Node | None:
        known = above.below.get(function)
        if known is None and self._nodes < MOST_NODES:
            self._nodes += 1
            known = above.below[function] = _Node()
        return known


def _sum(node: _Node, took: int) -> None:
    node.calls += 1
    node.total_ns += took
    node.longest_ns = max(node.longest_ns, took)


def _calls(nodes: dict[int, _Node], name: Callable[[int], str]) -> tuple[Call, ...]:
    ended = [(function, node) for function, node in nodes.items() if node.calls]
    return tuple(
        Call(
            name=name(function),
            calls=node.calls,
            total_ns=node.total_ns,
            self_ns=max(0, node.total_ns - node.below_ns),
            longest_ns=node.longest_ns,
            calls_to=_calls(node.below, name),
        )
        for function, node in sorted(ended, key=lambda item: -item[1].total_ns)
    )
