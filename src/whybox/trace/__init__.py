"""The white box: one module for each question that is asked of the running kernel.

    whybox trace QUESTION TARGET --for 10s

A module here says what is asked, and what the events and the answer are; what it hooks is a sensor
of ``whybox.kernel.sensors``. Questions are found by their name and imported only when asked.
"""

from importlib import import_module

from whybox.trace.question import Question

#: Every question and what it answers, in one line each. Its module is ``whybox.trace.NAME``.
QUESTIONS = {
    "hot": "which functions burn the CPU, in user space and in the kernel",
    "blocked": "where tasks wait: off-CPU time by kernel site, D state apart from sleep",
    "runqueue": "how long tasks wait for a CPU, and behind whom",
    "signals": "who sent which signal to whom, and what the kernel did with it",
    "reclaim": "who stalled for memory: direct reclaim, dirty-page pauses, OOM kills",
    "disk": "latency and size of its block IO, by device; throttled or queued",
    "files": "slow file operations and copy-ups, with the path inside the container",
    "packets": "where packets are dropped and why; retransmits and reordering",
    "softirq": "who holds the softirqs and timers, and how long",
    "syscalls": "counts, errors and latency by system call, and who denied what",
    "capabilities": "which capabilities it really uses, and the minimal set to run with",
    "exec": "every command run in it, and who started it; failed ones too",
    "functions": "how long a kernel function takes, or what it calls",
}


def load(name: str) -> Question:
    """One question by its name."""
    question: object = import_module(f"whybox.trace.{name}").QUESTION
    if not isinstance(question, Question):
        raise TypeError(f"{name}: QUESTION is not a Question")
    return question
