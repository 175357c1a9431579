"""System calls as a table, and who denied which."""

from collections.abc import Iterator

from whybox.trace.denial import Denial
from whybox.trace.syscalls import Answer, Call, Denied, Failure, Slow
from whybox.views import histogram_svg
from whybox.views.histogram import duration, powers

#: So many calls and denials are shown; all of them are in the JSON.
MOST_SHOWN = 25


def event(event: Denied | Slow) -> str:
    """One call."""
    head = f"{event.at_ns / 1e9:.6f} {event.comm} {event.pid}: {event.syscall}"
    if isinstance(event, Denied):
        return f"{head}: {event.outcome}, denied by {_by(event)}"
    result = f"returned {event.result}" if event.errno is None else f"failed with {event.errno}"
    return f"{head} took {duration(event.took_ns)} and {result}"


def answer(answer: Answer) -> list[str]:
    """The calls, the denials, and what has not returned."""
    return [*_calls(answer), *_unfinished(answer), *_denials(answer)]


def _calls(answer: Answer) -> Iterator[str]:
    if not answer.calls:
        yield "none of its tasks made a system call that returned"
        return
    yield (
        f"{answer.calls} system calls, {answer.errors} of them failed,"
        f" {duration(answer.sum_ns)} in all (waiting is counted)"
    )
    yield f"  {'calls':>8} {'failed':>8} {'in all':>8} {'mean':>8} {'p99':>8} {'longest':>8}"
    for call in answer.syscalls[:MOST_SHOWN]:
        yield _call(call)
    rest = answer.syscalls[MOST_SHOWN:]
    if rest:
        yield f"  {sum(call.calls for call in rest):>8} of {len(rest)} other system calls"


def _call(call: Call) -> str:
    lengths = (call.sum_ns, call.mean_ns, call.p99_ns, call.longest_ns)
    shown = " ".join(f"{duration(length):>8}" for length in lengths)
    failed = ", ".join(_failure(failure) for failure in call.failures)
    return f"  {call.calls:>8} {call.errors:>8} {shown}  {call.syscall}  {failed}".rstrip()


def _failure(failure: Failure) -> str:
    return f"{failure.errno} {failure.count}"


def _unfinished(answer: Answer) -> Iterator[str]:
    if answer.unfinished:
        yield "not returned yet:"
    for one in answer.unfinished[:MOST_SHOWN]:
        tasks = "1 task" if one.tasks == 1 else f"{one.tasks} tasks"
        yield f"  {duration(one.longest_ns):>8} {one.syscall}, {tasks}"


def _denials(answer: Answer) -> Iterator[str]:
    if not answer.denials:
        yield "nothing was denied"
        return
    yield "denied:"
    for denial in answer.denials[:MOST_SHOWN]:
        yield (
            f"  {denial.count:>6} {denial.syscall} {denial.outcome} by {_by(denial)}"
            f"  ({denial.comm} {denial.pid}{_site(denial)})"
        )
        yield f"         {denial.hint}"
    rest = sum(denial.count for denial in answer.denials[MOST_SHOWN:]) + answer.other_denials
    if rest:
        yield f"  {rest:>6} in other ways"


def _site(denial: Denial) -> str:
    return "" if denial.site is None else f", in {denial.site}"


def _by(denied: Denied | Denial) -> str:
    """What denied it.

    Neither seccomp nor a capability leaves many: the hint says which.
    """
    if denied.by == "capability":
        return f"capability {' or '.join(denied.capabilities)}"
    return {
        "seccomp": "seccomp",
        "tracer": "a tracer",
        "unknown": "seccomp, perhaps",
        "other": "neither seccomp nor a capability",
    }[denied.by]


def svg(answer: Answer, title: str) -> str:
    """The lengths of all calls together."""
    columns = zip(*(call.buckets for call in answer.syscalls), strict=True)
    buckets = [sum(column) for column in columns]
    return histogram_svg.svg(
        buckets,
        powers(64, len(buckets)),
        title,
        subtitle=f"{answer.calls} system calls, {answer.errors} of them failed",
        across="how long a call took, waiting included",
        up="calls",
    )


PICTURES = {"svg": svg}
