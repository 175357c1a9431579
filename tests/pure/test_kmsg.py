"""The kernel log and the OOM reports in it: the texts are what kernels really wrote."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from whybox.kernel import kmsg, oom
from whybox.kernel.host import Host, ParseError
from whybox.kernel.kmsg import Record
from whybox.kernel.oom import OomKill

ID = "0e1a4a8a204ae5ba4c79742f6a468efaf9d5ba84a3e6b4c7acd8c98cd469be15"

#: Linux 6.18, cgroup v1.
REPORT_618 = f"""\
memalloc invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
CPU: 0 UID: 0 PID: 11106 Comm: memalloc Not tainted 6.18.44 #1 PREEMPT(none)
Call Trace:
 <TASK>
 oom_kill_process.cold+0x8/0x8a
memory: usage 65536kB, limit 65536kB, failcnt 0
memory+swap: usage 65536kB, limit 65536kB, failcnt 0
kmem: usage 396kB, limit 9007199254740988kB, failcnt 0
Memory cgroup stats for /docker/{ID}:
cache 4096
rss 66703360
shmem 0
total_cache 8192
total_rss 66703360
total_shmem 4096
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents \
oom_score_adj name
[  11100]     0 11100      696      137      100       37         0    45056        0    0 sh
[  11106]     0 11106    16696    16393    16256      137         0   172032        0    0 memalloc
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset={ID},mems_allowed=0,\
oom_memcg=/docker/{ID},task_memcg=/docker/{ID},task=memalloc,pid=11106,uid=0
Memory cgroup out of memory: Killed process 11106 (memalloc) total-vm:66784kB, \
anon-rss:65024kB, file-rss:548kB, shmem-rss:0kB, UID:0 pgtables:168kB oom_score_adj:0
"""

#: Linux 6.1, cgroup v2: the kernel's order and words.
REPORT_V2 = """\
worker invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
CPU: 1 PID: 1324 Comm: worker Not tainted 6.1.0-37-amd64 #1  Debian 6.1.140-1
memory: usage 131072kB, limit 131072kB, failcnt 40
swap: usage 0kB, limit 9007199254740988kB, failcnt 0
Memory cgroup stats for /pod:
anon 133169152
file 524288
shmem 524288
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
[   1317]  1000  1317    12345    10240   172032        0             0 big one
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=b,mems_allowed=0-1,oom_memcg=/pod,\
task_memcg=/pod/b,task=big one,pid=1317,uid=1000
Memory cgroup out of memory: Killed process 1317 (big one) total-vm:49380kB, anon-rss:40960kB, \
file-rss:0kB, shmem-rss:0kB, UID:1000 pgtables:168kB oom_score_adj:-5
"""

REPORT_GLOBAL = f"""\
kthreadd invoked oom-killer: gfp_mask=0x2dc2(GFP_KERNEL), order=0, oom_score_adj=0
CPU: 3 PID: 2 Comm: kthreadd Tainted: G        W         5.10.0-35-amd64 #1
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
[   2829]  1000  2829    12345   262144   172032        0             0 java
[   2830]  1000  2830    12345     1024   172032        0          1000 web
oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
task_memcg=/kubepods/{ID},task=web,pid=2830,uid=1000
Out of memory: Killed process 2830 (web) total-vm:365980kB, anon-rss:4096kB, file-rss:0kB, \
shmem-rss:0kB, UID:1000 pgtables:576kB oom_score_adj:1000
oom_reaper: reaped process 2830 (web), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB
"""


def records(text: str | Iterable[str], first: int = 0) -> list[Record]:
    """Each line as one of the kernel's own records, a microsecond apart."""
    lines = text.splitlines() if isinstance(text, str) else text
    return [Record(first + n, 1_000_000 + first + n, 0, line) for n, line in enumerate(lines)]


def only(text: str | Iterable[str]) -> OomKill:
    (kill,) = oom.parse(records(text))
    return kill


def test_a_record_is_its_first_line_with_the_escapes_undone() -> None:
    got = kmsg.record(rb"12,7,99,-,caller=T3;a\x0ab \xff" + b"\n SUBSYSTEM=net\n")
    assert got == Record(7, 99, 1, "a\nb \\xff")


@pytest.mark.parametrize("raw", [b"", b"6,1,2,-", b"6,x,2,-;text", b"no record at all"])
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(ParseError):
        kmsg.record(raw)


def test_syslog_lines_may_lack_the_time() -> None:
    got = list(kmsg.syslog_records("<4>[  12.000345][ T1] late\n<30>[   13.5] x\n<6>no time\n"))
    assert got[0] == Record(None, 12_000_345, 0, "late")
    assert (got[1].facility, got[1].usec) == (3, None)
    assert got[2] == Record(None, None, 0, "no time")


def tree(tmp_path: Path, log: str | None, **files: str) -> Host:
    if log is not None:
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/kmsg").write_text(log)
    (tmp_path / "proc").mkdir()
    for name, text in files.items():
        (tmp_path / "proc" / name).write_text(text)
    return Host(root=str(tmp_path))


def test_a_log_in_a_tree_is_read_line_by_line(tmp_path: Path) -> None:
    log = kmsg.log(tree(tmp_path, "6,5,900,-;one\n SUBSYSTEM=net\n4,6,950,-;two\n"))
    assert [r.text for r in log.records] == ["one", "two"]
    assert log.reach.oldest_usec == 900
    assert not log.reach.complete


def test_a_log_that_may_not_be_read_says_why_and_covers_nothing(tmp_path: Path) -> None:
    log = kmsg.log(tree(tmp_path, None))
    assert log.records == ()
    assert log.reach.reason is not None
    assert "No such file" in log.reach.reason
    assert not log.reach.covers(10**12)


def test_an_empty_log_is_not_taken_for_silence(tmp_path: Path) -> None:
    reach = kmsg.log(tree(tmp_path, "")).reach
    assert reach.reason == "/dev/kmsg is empty"
    assert not reach.covers(5)


@pytest.mark.parametrize(
    ("reach", "usec", "covered"),
    [
        (kmsg.Reach(oldest_usec=100), 100, True),
        (kmsg.Reach(oldest_usec=100), 99, False),
        (kmsg.Reach(oldest_usec=100, complete=True), 0, True),
        (kmsg.Reach(oldest_usec=100, complete=True), -1, False),  # before this boot
        (kmsg.Reach(oldest_usec=100, complete=True, truncated=True), 200, False),
        (kmsg.Reach(oldest_usec=100), None, False),
    ],
)
def test_a_log_covers_what_came_after_its_oldest_record(
    reach: kmsg.Reach, usec: int | None, covered: bool
) -> None:
    assert reach.covers(usec) is covered


def test_clocks_of_a_tree(tmp_path: Path) -> None:
    host = tree(tmp_path, None, uptime="3000.50 1.0\n", stat="cpu 1\nbtime 1700000000\n")
    assert kmsg.now_usec(host) == 3_000_500_000
    assert kmsg.usec_of_wall(host, 1_700_000_010 * 10**9) == 10_000_000
    assert kmsg.usec_of_wall(host, 1_699_999_999 * 10**9) == -1_000_000
    assert kmsg.usec_of_wall(host, None) is None


def test_a_report_on_v1_is_told_whole() -> None:
    kill = only(REPORT_618)
    assert (kill.victim_pid, kill.victim_comm) == (11106, "memalloc")
    assert (kill.trigger_pid, kill.trigger_comm) == (11106, "memalloc")
    assert kill.oom_memcg == kill.task_memcg == f"/docker/{ID}"
    assert kill.constraint == "MEMCG"
    assert (kill.usage_bytes, kill.limit_bytes) == (64 << 20, 64 << 20)
    assert (kill.swap_usage_bytes, kill.swap_limit_bytes) == (64 << 20, 64 << 20)
    assert (kill.held_anon_bytes, kill.held_file_bytes) == (66703360, 4096)
    assert kill.held_shmem_bytes == 4096
    assert (kill.anon_rss_bytes, kill.oom_score_adj) == (65024 << 10, 0)
    assert kill.largest is not None
    assert (kill.largest.pid, kill.largest.comm) == (11106, "memalloc")
    assert not kill.global_oom
    assert not kill.another_asked


def test_a_parents_limit_on_v2_and_another_who_asked() -> None:
    kill = only(REPORT_V2)
    assert (kill.oom_memcg, kill.task_memcg) == ("/pod", "/pod/b")
    assert (kill.trigger_comm, kill.trigger_pid) == ("worker", 1324)
    assert kill.victim_comm == "big one"
    assert kill.swap_limit_bytes is None  # unlimited
    assert (kill.held_file_bytes, kill.held_shmem_bytes) == (0, 524288)
    assert kill.oom_score_adj == -5
    assert kill.another_asked
    assert kill.largest is not None
    assert kill.largest.comm == "big one"


def test_a_global_report_names_no_limit_but_the_largest() -> None:
    kill = only(REPORT_GLOBAL)
    assert kill.global_oom
    assert kill.oom_memcg is None
    assert kill.limit_bytes is None
    assert kill.constraint == "NONE"
    assert kill.task_memcg == f"/kubepods/{ID}"
    assert kill.trigger_pid == 2
    assert kill.largest is not None
    assert (kill.largest.comm, kill.largest.pid) == ("java", 2829)


def test_memory_stat_in_one_record_as_6_1_writes_it() -> None:
    lines = REPORT_V2.splitlines()
    stats = lines.index("anon 133169152")
    lines[stats : stats + 3] = ["anon 133169152\nfile 4096\nshmem 0\nfile_mapped 13"]
    kill = only(lines)
    assert (kill.held_anon_bytes, kill.held_file_bytes) == (133169152, 4096)


def test_what_others_wrote_to_the_log_is_not_believed() -> None:
    forged = [Record(r.seq, r.usec, 1, r.text) for r in records(REPORT_618)]
    assert oom.parse(forged) == ()


def test_other_messages_in_between_do_no_harm() -> None:
    lines: list[str] = []
    for line in REPORT_618.splitlines():
        lines += [line, "CPU: 1 UID: 0 PID: 4 Comm: other Not tainted", "docker0: port 1 disabled"]
    kill = only(lines)
    assert (kill.trigger_pid, kill.limit_bytes) == (11106, 64 << 20)


def test_interleaved_reports_are_told_apart_by_path_and_pid() -> None:
    ours, theirs = REPORT_618.splitlines(), REPORT_V2.splitlines()
    # Heads in one order, ends in the other.
    cut, other = ours.index("Tasks state (memory values in pages):"), theirs.index("anon 133169152")
    mixed = [*ours[:cut], *theirs[:other], *theirs[-2:-1], *ours[-2:-1], ours[-1], theirs[-1]]
    first, second = oom.parse(records(mixed))
    assert (first.victim_pid, first.limit_bytes, first.trigger_pid) == (11106, 64 << 20, 11106)
    assert (second.victim_pid, second.limit_bytes, second.trigger_pid) == (1317, 128 << 20, 1324)


def test_a_victim_beyond_ten_in_five_seconds_has_no_group() -> None:
    first, bare = oom.parse(records([*REPORT_618.splitlines(), REPORT_618.splitlines()[-1]]))
    assert first.task_memcg == f"/docker/{ID}"
    assert (bare.victim_pid, bare.task_memcg, bare.limit_bytes) == (11106, None, None)


def test_a_group_that_is_killed_together() -> None:
    lines = REPORT_V2.splitlines()
    member = lines[-1].replace("1317 (big one)", "1318 (sleep)")
    group = "Tasks in /pod/b are going to be killed due to memory.oom.group set"
    kills = oom.parse(records([*lines, group, lines[-1], member]))
    assert [k.victim_pid for k in kills] == [1317, 1318]
    assert all(k.oom_group and k.task_memcg == "/pod/b" for k in kills)
    assert kills[1].limit_bytes == 128 << 20


def test_a_kill_long_after_a_group_is_not_of_the_group() -> None:
    lines = REPORT_V2.splitlines()
    group = "Tasks in /pod/b are going to be killed due to memory.oom.group set"
    later = Record(99, 60_000_000, 0, lines[-1].replace("1317", "9"))
    kills = oom.parse([*records([*lines, group]), later])
    assert kills[1].task_memcg is None


def test_a_report_without_a_victim_is_forgotten() -> None:
    lines = REPORT_618.splitlines()[:-2]
    lines.append("Memory cgroup out of memory: OOM victim 7 (x) is already exiting. Skip killing")
    assert len(oom.parse(records([*lines, *REPORT_V2.splitlines()]))) == 1


def test_a_report_whose_beginning_was_overwritten_still_names_whose_limit() -> None:
    kill = only(REPORT_618.splitlines()[-2:])
    assert kill.oom_memcg == f"/docker/{ID}"
    assert (kill.trigger_comm, kill.limit_bytes) == (None, None)


def test_a_line_that_was_cut_in_two() -> None:
    lines = REPORT_618.splitlines()
    at = lines[-2].index(",task_memcg=")
    lines[-2:-1] = [lines[-2][:at], "eth0: link up", lines[-2][at:]]
    kill = only(lines)
    assert kill.task_memcg == f"/docker/{ID}"
    assert kill.limit_bytes == 64 << 20


@pytest.mark.parametrize(
    "comm",
    ["a,b", ",pid=1,uid=0", ",task_memcg=/x", ",task=a,pid=1", ") total-vm:1kB", "x (y)", ""],
)
def test_a_task_may_call_itself_what_it_likes(comm: str) -> None:
    kill = only(REPORT_618.replace("memalloc", comm))
    assert kill.victim_comm == comm
    assert kill.task_memcg == kill.oom_memcg == f"/docker/{ID}"
    assert kill.victim_pid == 11106


@pytest.mark.parametrize(
    "name", ["x,task_memcg=", "x,task=evil,pid=1,uid=0", "a,oom_memcg=", "a b"]
)
def test_a_container_that_names_its_own_groups_cannot_speak_of_others(name: str) -> None:
    kill = only(REPORT_618.replace(f"/docker/{ID},task=", f"/docker/{ID}/{name},task="))
    assert kill.task_memcg == f"/docker/{ID}/{name}"
    assert kill.oom_memcg == f"/docker/{ID}"


def test_a_cpuset_with_a_false_name() -> None:
    name = "x,mems_allowed=0,oom_memcg="
    kill = only(REPORT_618.replace(f"cpuset={ID}", f"cpuset={name}"))
    assert kill.oom_memcg == f"/docker/{ID}"


def test_a_newline_in_a_name_makes_no_line() -> None:
    text = "a\noom-kill:constr invoked oom-killer: gfp_mask=0"
    assert oom.parse([Record(1, 1, 0, text)]) == ()


def test_kills_of_a_tree(tmp_path: Path) -> None:
    lines = [f"6,{n},{n + 7},-;{line}" for n, line in enumerate(REPORT_618.splitlines())]
    host = tree(tmp_path, "\n".join(lines) + "\n")
    assert [k.victim_pid for k in oom.kills(host)] == [11106]
    assert kmsg.log(host).reach.complete
