"""process/pids_exhausted judged on literal observations, and observed on small trees."""

from pathlib import Path

import msgspec

from whybox.cases.process.pids_exhausted.probe import CASE, Observation, judge, observe
from whybox.cases.process.zombies.probe import CASE as ZOMBIES
from whybox.change import InProgram, PidsLimit
from whybox.kernel import pidslevels
from whybox.kernel.crowd import Crowd, Process
from whybox.kernel.forkrefusal import Refusal
from whybox.kernel.host import Host
from whybox.kernel.pidslevels import ABOVE, INNER, OWN, Count, Level, Share
from whybox.kernel.rlimits import MachineTasks, UserTasks
from whybox.kernel.target import Target
from whybox.kernel.task import TaskId
from whybox.model import (
    AnyCase,
    Certainty,
    Finding,
    RuledOut,
    Severity,
    Verdict,
    clear,
    with_consequences,
)

SECOND_NS = 1_000_000_000
CASES: dict[str, AnyCase] = {"process/zombies": ZOMBIES, "process/pids_exhausted": CASE}


def level(
    path: str = "/docker/x",
    *,
    place: str = OWN,
    current: int = 40,
    limit: int | None = 40,
    refused: int = 0,
    fresh: int = 0,
    local: bool = False,
    peak: int | None = None,
) -> Level:
    """A group that refused ``refused`` forks in all, ``fresh`` of them in the window."""

    def count(n: int) -> Count:
        return Count(
            path=path,
            directory=f"/sys/fs/cgroup{path}",
            current=current,
            limit=limit,
            peak=peak,
            refused=n,
            at_the_limit=local,
        )

    return Level(place=place, before=count(refused - fresh), after=count(refused))


def crowd(
    *,
    threads: int = 40,
    zombies: int = 0,
    largest: int = 1,
    of_kind: int = 40,
    makers: int = 1,
    births: tuple[float, ...] = (),
) -> Crowd:
    """Processes called worker, most of them PID 1's."""
    return Crowd(
        processes=threads - largest + 1,
        threads=threads,
        zombies=zombies,
        largest=Process(pid=7, comm="java"),
        largest_threads=largest,
        kind="worker",
        of_kind=of_kind,
        parent=Process(pid=6, comm="master"),
        of_parent=of_kind - 1,
        parents_of_kind=makers,
        births=births,
    )


def seen(*levels: Level, they: Crowd | None = None, **more: object) -> Observation:
    """Two seconds."""
    return msgspec.structs.replace(
        Observation(elapsed_ns=2 * SECOND_NS, levels=levels, crowd=they), **more
    )


def test_refused_in_this_window_at_its_own_limit_is_critical_and_allows_what_was_wanted() -> None:
    finding = judge(seen(level(refused=23, fresh=23), they=crowd()))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.CRITICAL)
    assert finding.certainty is Certainty.CONFIRMED
    assert "refused 23 times in these 2.0 s by its own limit of 40 tasks" in finding.summary
    assert "39 made by master (pid 6)" in finding.summary
    assert finding.evidence[0].says == "max 23 (+23 in this window)"
    assert finding.cures[0].change == PidsLimit(80)


def test_full_and_refused_before_is_still_refused() -> None:
    finding = judge(seen(level(refused=1), they=crowd(largest=40)))
    assert finding.verdict is Verdict.FOUND
    assert "refused once by" in finding.summary
    assert "40 by the threads of java (pid 7)" in finding.summary


def test_full_and_never_refused_is_clear_and_says_so() -> None:
    finding = judge(seen(level()))
    assert finding.verdict is Verdict.CLEAR
    assert "40 of 40" in finding.summary
    assert "the next will be" in finding.summary


def test_refused_long_ago_with_room_now_is_clear_and_counted() -> None:
    finding = judge(seen(level(current=40, limit=100, refused=23)))
    assert finding.verdict is Verdict.CLEAR
    assert "23 times one was refused since it began" in finding.summary


def test_refused_in_this_window_with_room_at_its_end_is_a_warning() -> None:
    finding = judge(seen(level(current=3, refused=5, fresh=5)))
    assert (finding.verdict, finding.severity) == (Verdict.FOUND, Severity.WARNING)
    assert "comes and goes" in finding.summary


def test_the_parents_limit_where_the_forking_group_counts() -> None:
    levels = (level(limit=None, refused=23, fresh=3), level("/pod", place=ABOVE))
    finding = judge(seen(*levels, they=crowd()))
    assert "the limit of its parent /pod of 40 tasks" in finding.summary
    assert finding.certainty is Certainty.CONFIRMED
    change = finding.cures[0].change
    assert isinstance(change, PidsLimit)
    assert change.cgroup == "/pod"


def test_the_parents_limit_where_its_own_group_counts_may_have_refused_a_neighbour() -> None:
    levels = (
        level(limit=None, current=3, local=True),
        level("/pod", place=ABOVE, local=True, refused=23, fresh=23),
    )
    shares = (Share(path="/pod/hog", current=37), Share(path="/docker/x", current=3))
    finding = judge(seen(*levels, they=crowd(), shares=shares))
    assert finding.certainty is Certainty.LIKELY
    assert "only 3 by it and 37 by its neighbour /pod/hog" in finding.summary
    assert finding.evidence[0].source == "/sys/fs/cgroup/pod/pids.events.local"


def test_a_neighbour_that_is_refused_in_its_own_group_is_not_this_container() -> None:
    levels = (level(limit=None, current=3), level("/pod", place=ABOVE, refused=9, fresh=9))
    assert judge(seen(*levels)).verdict is Verdict.CLEAR


def test_counted_by_the_forker_although_there_is_a_local_file() -> None:
    """The mount option pids_localevents."""
    levels = (
        level(limit=None, local=True, refused=4, fresh=4),
        level("/pod", place=ABOVE, local=True),
    )
    finding = judge(seen(*levels, they=crowd()))
    assert finding.verdict is Verdict.FOUND
    assert "/pod" in finding.summary


def test_a_group_made_inside_counts_for_itself() -> None:
    inner = level("/docker/x/svc", place=INNER, current=10, limit=10, refused=2, fresh=2)
    finding = judge(seen(level(limit=None), inner, they=crowd()))
    assert "the group in it /docker/x/svc" in finding.summary
    change = finding.cures[0].change
    assert isinstance(change, PidsLimit)
    assert change.cgroup == "/docker/x/svc"


def test_a_new_group_began_at_nothing() -> None:
    after = level("/docker/x/new", place=INNER, limit=5, current=5, refused=2).after
    fresh = Level(place=INNER, before=None, after=after)
    assert judge(seen(level(limit=None), fresh)).verdict is Verdict.FOUND


def test_zombies_are_the_cause_and_a_larger_limit_no_cure() -> None:
    finding = judge(seen(level(refused=23), they=crowd(threads=1, zombies=39, of_kind=1)))
    assert "39 by zombies" in finding.summary
    assert all(isinstance(cure.change, InProgram) for cure in finding.cures)
    assert not any(other.what == "process/zombies" for other in finding.ruled_out)


def test_a_zombie_among_many_that_live_does_not_explain_it() -> None:
    """The relation is the case's, but what this finding rules out is not its cause."""
    one = Finding(verdict=Verdict.FOUND, summary="1 zombie stays", case="process/zombies")

    def cause(they: Crowd) -> str | None:
        full = judge(seen(level(refused=23), they=they)).of("process/pids_exhausted")
        return with_consequences((one, full), CASES)[1].explained_by

    assert cause(crowd(threads=1, zombies=39, of_kind=1)) == "process/zombies"
    assert cause(crowd(threads=39, zombies=1)) is None


def test_what_is_clear_explains_nothing() -> None:
    full = Finding(
        verdict=Verdict.FOUND,
        summary="",
        case="process/pids_exhausted",
        ruled_out=(RuledOut("cpu/starved", ""),),
    )
    none = clear("").of("process/zombies")
    assert with_consequences((none, full), CASES)[1].explained_by is None


def test_a_fork_bomb_is_not_given_more() -> None:
    finding = judge(seen(level(refused=900, fresh=900), they=crowd(makers=12)))
    assert "a fork bomb" in finding.summary
    assert all(isinstance(cure.change, InProgram) for cure in finding.cures)


def test_workers_of_one_master_of_the_same_name_are_no_bomb() -> None:
    assert "bomb" not in judge(seen(level(refused=9), they=crowd(makers=1))).summary


def test_tasks_that_came_one_by_one_look_like_a_leak() -> None:
    steady = tuple(float(n) for n in range(4000, 0, -100))
    finding = judge(seen(level(refused=2), they=crowd(largest=40, births=steady)))
    assert "leak" in finding.cures[0].advice
    assert isinstance(finding.cures[1].change, PidsLimit)


def test_a_pool_that_was_made_at_once_or_in_two_steps_is_no_leak() -> None:
    for births in ((*[900.0] * 20, *[1.0] * 20), (3600.0, *[10.0] * 39), (500.0, 400.0)):
        assert crowd(births=births).accrued_seconds is None


def test_one_who_asks_a_thousand_times_does_not_want_a_thousand() -> None:
    finding = judge(seen(level(refused=5000, fresh=5000), they=crowd()))
    assert finding.cures[0].change == PidsLimit(200)
    assert "counted again" in finding.cures[0].advice


def test_the_advice_names_a_nearer_limit_above() -> None:
    levels = (level(refused=23, fresh=23), level("/pod", place=ABOVE, limit=50, peak=40))
    assert "/pod above it must allow as many" in judge(seen(*levels)).cures[0].advice


def test_a_limit_of_its_user_is_unknown_since_it_leaves_no_count() -> None:
    user = UserTasks(pid=9, uid=1000, limit=40, tasks=40)
    finding = judge(seen(level(limit=None), users=(user,)))
    assert finding.verdict is Verdict.UNKNOWN
    assert "uid 1000 has 40 of the 40 tasks" in finding.summary
    below = msgspec.structs.replace(user, tasks=39)
    assert judge(seen(level(limit=None), users=(below,))).verdict is Verdict.CLEAR


def test_a_machine_that_is_full_is_unknown_too() -> None:
    full = MachineTasks(tasks=32_500, pid_max=32_768, threads_max=90_000)
    assert judge(seen(level(limit=None), machine=full)).verdict is Verdict.UNKNOWN
    half = msgspec.structs.replace(full, tasks=16_000)
    assert judge(seen(level(limit=None), machine=half)).verdict is Verdict.CLEAR


def test_no_limit_anywhere_is_clear() -> None:
    assert judge(seen(level(limit=None))).summary == "No limit of tasks, here or above it."


def test_the_dead_are_told_by_the_log() -> None:
    log = Refusal(source="/dev/kmsg", line="x", age_seconds=90, covers=True, reason=None)
    finding = judge(seen(log=log))
    assert (finding.verdict, finding.certainty) == (Verdict.FOUND, Certainty.LIKELY)
    nothing = msgspec.structs.replace(log, line=None)
    assert judge(seen(log=nothing)).verdict is Verdict.CLEAR
    short = msgspec.structs.replace(nothing, covers=False)
    assert judge(seen(log=short)).verdict is Verdict.UNKNOWN


def tree(root: Path, group: str, **files: str) -> None:
    """A v2 machine with one container in it."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text(
        "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    directory = root / "sys/fs/cgroup" / group.lstrip("/")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_", ".")).write_text(text)


def observed(root: Path, between: dict[str, dict[str, str]]) -> Observation:
    """What is seen when those files change within the window."""
    host = Host(str(root), window_seconds=1)
    target = Target(
        id="x",
        name="x",
        runtime="docker",
        init=TaskId(pid=1, start_ticks=1),
        cgroups={"": "/pod/x"},
    )
    watch = observe(host, target)
    next(watch)
    for group, files in between.items():
        tree(root, group, **files)
    host.next_moment()
    try:
        next(watch)
    except StopIteration as end:
        value: Observation = end.value
        return value
    raise AssertionError


def test_it_reads_the_files_of_either_age(tmp_path: Path) -> None:
    for name, events in (("old", "pids_events"), ("new", "pids_events_local")):
        root = tmp_path / name
        tree(root, "/pod", pids_current="40\n", pids_max="40\n", **{events: "max 0\n"})
        tree(root, "/pod/x", pids_current="3\n", pids_max="max\n", **{events: "max 0\n"})
        where = "/pod/x" if name == "old" else "/pod"
        result = observed(root, {where: {events: "max 7\n"}})
        short = pidslevels.short(result.levels)
        assert short is not None
        assert (short.place, short.after.path) == (ABOVE, "/pod")
        assert pidslevels.refused(short, result.levels) == (7, 7)
        assert "by its neighbour" not in judge(result).summary
