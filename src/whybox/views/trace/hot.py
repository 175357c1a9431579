"""Which functions burn the CPU."""

from whybox.trace.hot import ENOUGH, Answer, Function, Process
from whybox.views import flame
from whybox.views.histogram import duration

_MOST_SHOWN = 15


def answer(answer: Answer) -> list[str]:
    """Functions, processes, and what the samples cannot tell."""
    if not answer.samples:
        return ["it was on no CPU whenever one was sampled"]
    kernel = 100 * answer.kernel_samples / answer.samples
    return [
        f"{answer.samples} samples at {answer.frequency_hz} Hz: {duration(answer.cpu_ns)} of CPU,"
        f" {kernel:.0f} % of it in the kernel",
        *_functions(answer),
        *_processes(answer),
        *_cautions(answer),
    ]


def _functions(answer: Answer) -> list[str]:
    if not answer.enough:
        return [
            f"too few samples to name a function, {ENOUGH} are needed: trace longer, or sample"
            " more often (--frequency)"
        ]
    shown = [one for one in answer.functions if worth_a_line(one)]
    return ["   itself   in all  function"] + [
        f"  {100 * one.own_share:>5.1f} %  {100 * one.total_share:>5.1f} %  {one.name}"
        f" ({one.file or 'unknown'})"
        for one in shown[:_MOST_SHOWN]
    ]


def worth_a_line(one: Function) -> bool:
    """What hardly runs itself is shown only where it calls much that does."""
    return one.own_share >= 0.001 or one.total_share >= 0.05


def _processes(answer: Answer) -> list[str]:
    """Those of one name as one: a server has many alike, a script starts many."""
    names: dict[str, list[Process]] = {}
    for one in answer.processes:
        names.setdefault(one.comm, []).append(one)
    ranked = sorted(names.items(), key=lambda item: -sum(one.samples for one in item[1]))
    return ["by process:"] + [
        f"  {100 * sum(one.share for one in group):>5.1f} %  {comm}, {_whose(group)}"
        for comm, group in ranked[:_MOST_SHOWN]
    ]


def _whose(group: list[Process]) -> str:
    return f"pid {group[0].pid}" if len(group) == 1 else f"{len(group)} processes"


def _cautions(answer: Answer) -> list[str]:
    told = []
    if answer.cut:
        told.append(
            "most stacks in user space are cut short: the programs were compiled without frame"
            " pointers, so trust what runs itself, not who called it"
        )
    for file in answer.nameless[:5]:
        if file.samples * 100 < answer.samples:
            continue
        build_id = "" if file.build_id is None else f", build id {file.build_id}"
        told.append(
            f"{file.file} does not tell the names of its functions{build_id}"
            f" ({file.samples} samples): [{file.file}+0x…] is where one begins"
        )
    if answer.unread_samples:
        told.append(
            f"{answer.unread_samples} samples are of processes that ended before their files"
            " could be looked at"
        )
    if answer.late:
        told.append("the programs' files could not all be read in time: names are missing")
    if answer.unplaced_samples:
        told.append(f"{answer.unplaced_samples} samples miss a part of their stack")
    return told


def _samples(weight: int) -> str:
    return f"{weight} samples"


_UNIT = flame.Unit(speedscope="none", shown=_samples)


def _svg(answer: Answer, title: str) -> str:
    return flame.svg(answer.stacks, title, _UNIT)


def _html(answer: Answer, title: str) -> str:
    return flame.html(answer.stacks, title, _UNIT)


def _collapsed(answer: Answer, title: str) -> str:
    return flame.collapsed(answer.stacks)


def _speedscope(answer: Answer, title: str) -> str:
    return flame.speedscope(answer.stacks, title, _UNIT)


PICTURES = {"svg": _svg, "html": _html, "collapsed": _collapsed, "speedscope": _speedscope}
