"""Signals as lines, and counted."""

from whybox.trace.signals import Answer, Signal


def event(event: Signal) -> str:
    """One signal."""
    thread = "" if event.to_tid is None else f", thread {event.to_tid}"
    sender = event.from_comm if event.from_pid == 0 else f"{event.from_comm} {event.from_pid}"
    return (
        f"{event.at_ns / 1e9:.6f} {event.signal:<10} {sender} → {event.to_comm} {event.to_pid}"
        f"{thread}: {event.fate} ({event.how})"
    )


def answer(answer: Answer) -> list[str]:
    """The counts."""
    if not answer.signals:
        return ["no signal was sent to any of its tasks"]
    lines = [f"{answer.signals} signals, {answer.ignored} of them ignored"]
    lines += [
        f"  {kind.count:>6} {kind.signal:<10} {kind.sender} → {kind.to}: {kind.fate}"
        for kind in answer.kinds
    ]
    if answer.other_kinds:
        lines.append(f"  {answer.other_kinds:>6} of other kinds, not counted apart")
    return lines
