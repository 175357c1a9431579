"""Stalls for memory, as histograms, and the OOM killer's victims."""

from collections.abc import Iterator

from whybox.trace.budget import Budget
from whybox.trace.reclaim import Answer, Kill, Slow, Stalls
from whybox.views.histogram import duration, lines, powers, size


def event(event: Slow | Kill) -> str:
    """One long stall, or one kill."""
    at = f"{event.at_ns / 1e9:.6f}"
    if isinstance(event, Kill):
        return f"{at} OOM kill: {_kill(event)}"
    thread = "" if event.tid == event.pid else f", thread {event.tid}"
    more = f", {event.pages} pages freed" if event.pages else ""
    more += f", for 2^{event.order} pages in a row" if event.order else ""
    more += f", writing to {event.device}" if event.device else ""
    lasted = duration(event.lasted_ns)
    return f"{at} {event.comm} {event.pid}{thread}: {event.what} for {lasted}{more}"


def _kill(kill: Kill) -> str:
    held = "" if kill.anon_rss_bytes is None else f" which held {size(kill.anon_rss_bytes)}"
    held += f" and {size(kill.shmem_rss_bytes)} shared" if held and kill.shmem_rss_bytes else ""
    where = "" if kill.victim_inside else ", of another container,"
    asked = "" if kill.trigger_inside else ", of another container"
    return (
        f"{kill.victim_comm} {kill.victim_pid}{where}{held}, when {kill.trigger_comm} "
        f"{kill.trigger_pid}{asked} asked for more; {_full(kill)}"
    )


def _full(kill: Kill) -> str:
    if kill.of_the_host:
        return "the host had no memory left"
    limit = "" if kill.limit_bytes is None else f" of {size(kill.limit_bytes)}"
    return f"{kill.full or 'a group inside of another one'} was at its limit{limit}"


def answer(answer: Answer) -> list[str]:
    """The histograms, who stalled, whom the OOM killer killed, and the limit beside it."""
    shown = [] if answer.stalls else ["none of its tasks had to wait for memory"]
    for stalls in answer.stalls:
        shown += _stalls(stalls)
    shown += _processes(answer)
    if answer.killed:
        shown.append(f"the OOM killer ended {answer.killed} of its processes:")
    elif answer.kills:
        shown.append("the OOM killer ended processes of others on its behalf:")
    shown += [f"  {_kill(kill)}" for kill in answer.kills]
    return shown + ([] if answer.memory is None else list(_budget(answer.memory)))


def _stalls(stalls: Stalls) -> Iterator[str]:
    mean = duration(stalls.sum_ns / stalls.count)
    freed = f", {stalls.pages} pages freed" if stalls.pages else ""
    yield (
        f"{stalls.what}: {stalls.count} times, {duration(stalls.sum_ns)} in all, {mean} on "
        f"average, {duration(stalls.longest_ns)} at most{freed}"
    )
    for line in lines(stalls.buckets, powers(1000, len(stalls.buckets))):
        yield f"  {line}"


def _processes(answer: Answer) -> Iterator[str]:
    if answer.processes:
        yield "who stalled:"
    for one in answer.processes:
        yield (
            f"  {duration(one.sum_ns):>8} in {one.count:>6} stalls, {duration(one.longest_ns)} at "
            f"most  {one.comm} {one.pid}: {one.what}"
        )


def _budget(budget: Budget) -> Iterator[str]:
    usage = "unknown" if budget.usage_bytes is None else size(budget.usage_bytes)
    limit = "no limit" if budget.limit_bytes is None else f"a limit of {size(budget.limit_bytes)}"
    yield f"its memory group {budget.path} holds {usage}, with {limit}"
    counts = {
        "was at its limit {} times": budget.max_events,
        "was slowed down {} times above memory.high": budget.high_events,
        "had {} major page faults": budget.major_faults,
        "read {} pages again that had been given up": budget.refaults,
    }
    said = [text.format(count) for text, count in counts.items() if count]
    if budget.some_ns:
        waited, all_of_it = duration(budget.some_ns), duration(budget.full_ns or 0)
        said.append(f"waited for memory {waited}, all of it at once {all_of_it} (PSI)")
    if said:
        yield "  during the trace it " + "; ".join(said)
