"""Whom the OOM killer killed in one container, and the limits that count for it.

A report names the groups of victim and limit by their paths. An engine's id is in such a path, so
a container is known by it when its group is long gone. What a sensor saw needs no path.
"""

import re
from collections.abc import Mapping

from msgspec import Struct, structs

from whybox.kernel import cgroup, kmsg, memory, oom
from whybox.kernel.cgroup import UNIFIED, Group
from whybox.kernel.finding import recognise
from whybox.kernel.host import Host
from whybox.kernel.kmsg import Reach
from whybox.kernel.memory import Memory
from whybox.kernel.oomkill import OomKill, Witness
from whybox.kernel.oomneighbours import Neighbours, neighbours
from whybox.kernel.target import Exit, Target, still_there

#: The clocks of the log, of processes and of engines agree this well at best.
SLACK_USEC = 1_000_000
#: Pages are charged ahead in batches: a group is out of memory a little below its limit.
BATCH_BYTES = 64 * 4096


class Level(Struct, frozen=True, kw_only=True):
    """One group as it is now, or as it was last seen."""

    memory: Memory
    swap_limit_bytes: int | None = None
    """v1: of memory and swap together."""
    oom_local: int | None = None
    """v2: how often this group's own limit led to out of memory."""

    @property
    def never_full(self) -> bool:
        """Whether it never held what it may hold now: its limit was lower, or never reached."""
        peak, limit = self.memory.peak_bytes, self.memory.limit_bytes
        return peak is not None and limit is not None and peak < limit - BATCH_BYTES

    @property
    def has_been_full(self) -> bool:
        """Whether it once held all that it may hold now."""
        peak, limit = self.memory.peak_bytes, self.memory.limit_bytes
        return peak is not None and limit is not None and peak >= limit - BATCH_BYTES

    @property
    def ran_out(self) -> bool:
        """Whether its own limit led to out of memory, as far as counters tell.

        v2 counts that; v1 counts only the victims, so there the peak must do.
        """
        return self.has_been_full if self.memory.version == 1 else bool(self.oom_local)

    def raised_since(self, kill: OomKill) -> bool:
        """Whether it may hold more now than when its limit led to that kill."""
        limit, swap = self.memory.limit_bytes, self.swap_limit_bytes
        if limit is None or kill.limit_bytes is None:
            return limit is None or self.never_full
        more_swap = swap is not None and swap > (kill.swap_limit_bytes or swap)
        return limit > kill.limit_bytes or more_swap


class Casualties(Struct, frozen=True, kw_only=True):
    """What the log says about one container, and the counters that are left."""

    id: str
    runtime: str
    path: str | None
    """Its memory group; of a container that is gone it may be unknown."""
    init_pid: int | None
    ended: bool
    """Whether it is dead at the end of the window."""
    kills: tuple[OomKill, ...]
    nameless: int = 0
    """Other kills of its time whose group the log does not tell: one may be its own."""
    new_seq: int | None
    """The first record of the log that was written in the window."""
    log: Reach
    now_usec: int | None
    start_usec: int | None
    """When this run of it began, on the clock of the log."""
    end_usec: int | None
    oom_kill_before: int | None
    levels: tuple[Level, ...]
    """Its own group first, where that is known, then those above, then others with kills."""
    exit: Exit | None
    total_bytes: int | None
    """The machine's memory."""
    around: Neighbours = Neighbours()
    """Who shares its limit or is close to an own one; only where something was killed."""
    unwatched: str | None = None
    """Why no sensor saw the kills of this window; ``None``: one did."""

    @property
    def own(self) -> Memory | None:
        """The counters of its own group."""
        level = self.level(self.path)
        return None if level is None else level.memory

    @property
    def fresh(self) -> int:
        """How many kills its group counted in this window."""
        now = None if self.own is None else self.own.oom_kill
        return max(now - self.oom_kill_before, 0) if now and self.oom_kill_before is not None else 0

    @property
    def times(self) -> int:
        """How many were killed, as far as log or counter go back."""
        return max(len(self.kills), 0 if self.own is None else self.own.oom_kill or 0)

    @property
    def given_once(self) -> bool:
        """Whether its group cannot be older than it, or shared."""
        return given_once(self.id, self.runtime)

    @property
    def stopped_by_engine(self) -> bool:
        """Whether its engine killed it after it was out of memory: it may only have waited."""
        events = () if self.exit is None else self.exit.events
        return "oom" in events and any(e.startswith("kill") for e in events[events.index("oom") :])

    def level(self, path: str | None) -> Level | None:
        """One group, if it can be seen."""
        return next((level for level in self.levels if level.memory.path == path), None)

    @property
    def blamed(self) -> Level | None:
        """Whose limit it was, as far as counters tell: its own, else one above that ran out."""
        own = self.level(self.path)
        # v2 counts as ``oom`` what an own limit led to, here or below.
        if own is not None and (own.ran_out or own.memory.oom):
            return own
        return next((one for one in self.levels if one is not own and one.ran_out), None)

    def standing(self) -> list[OomKill]:
        """The kills of this window, and those at a limit that was not raised since."""
        return [k for k in self.kills if self.in_window(k) or not (self._old(k) or self._raised(k))]

    def last(self) -> OomKill | None:
        """The last kill that stands; of a group that was killed as one, its chosen victim."""
        standing = self.standing()
        if not standing:
            return None
        end = self._told_best(standing)
        if not end.oom_group:
            return end
        together = [k for k in standing if k.oom_group and k.oom_memcg == end.oom_memcg]
        return next(k for k in together if (end.usec or 0) - (k.usec or 0) < SLACK_USEC)

    def _told_best(self, standing: list[OomKill]) -> OomKill:
        """The last one, or of those at the same limit the last of which the log tells more.

        A kill is marked before it is logged (mm/oom_kill.c, __oom_kill_process): of one that
        happens while we read, the sensor may know and the log not yet.
        """
        end = standing[-1]
        alike = [k for k in standing if self.in_window(k) and k.oom_memcg == end.oom_memcg]
        told = [k for k in alike if k.logged and k.usage_bytes is not None]
        return told[-1] if told and not end.logged else end

    def in_window(self, kill: OomKill) -> bool:
        """Whether it happened while we watched."""
        return kill.witnessed or since(kill, self.new_seq)

    def _old(self, kill: OomKill) -> bool:
        """Of the dead it is asked how their last run ended, not an earlier one."""
        if not self.ended or kill.usec is None or self.start_usec is None:
            return False
        return kill.usec < self.start_usec - SLACK_USEC

    def _raised(self, kill: OomKill) -> bool:
        level = self.level(kill.oom_memcg)
        return level is not None and level.raised_since(kill)

    def age_usec(self, kill: OomKill) -> int | None:
        """How long ago it was."""
        known = kill.usec is not None and self.now_usec is not None
        return max((self.now_usec or 0) - (kill.usec or 0), 0) if known else None

    def is_own(self, path: str | None) -> bool:
        """Whether a group is the container's, or inside of it."""
        # Podman's limit is on a group above the one that the processes are in.
        if path is None or path == self.path:
            return path is not None
        return within(path, self.path) or bears(path, self.id)


def level(host: Host, group: Group) -> Level:
    """One group's counters and limits."""
    swap = "memory.memsw.limit_in_bytes" if group.version == 1 else "memory.swap.max"
    limit = host.optional_number(group.file(swap))
    file = group.file("memory.events.local")
    local = host.optional_text(file)
    return Level(
        memory=memory.memory(host, group),
        swap_limit_bytes=None if limit is None or limit >= memory.UNLIMITED_V1 else limit,
        oom_local=None if local is None else cgroup.keyed(file, local).get("oom"),
    )


def lineage(host: Host, own: Group | None) -> dict[str, Level]:
    """The container's group first, then every group above it, by path."""
    seen = [] if own is None else [level(host, g) for g in own.lineage()]
    return {one.memory.path: one for one in seen if _is_there(one)}


def _is_there(one: Level) -> bool:
    """A group that is gone has no usage, and no limit, which is not the same as unlimited."""
    return one.memory.current_bytes is not None


def levels(
    host: Host, own: Group | None, before: Mapping[str, Level], kills: tuple[OomKill, ...]
) -> tuple[Level, ...]:
    """The lineage as it is now, or was before it vanished; then other groups that had kills."""
    seen = {**before, **lineage(host, own)}
    for path in sorted({k.oom_memcg for k in kills if k.oom_memcg is not None}):
        other = cgroup.group(host, {"memory": path, UNIFIED: path}, "memory")
        if other is not None and path not in seen and _is_there(level(host, other)):
            seen[path] = level(host, other)
    return tuple(seen.values())


def path_of(target: Target) -> str | None:
    """Its memory group: v1 has one, or else it is the one of the unified tree."""
    return target.cgroups.get("memory", target.cgroups.get(UNIFIED))


def since(kill: OomKill, seq: int | None) -> bool:
    """Whether the log tells of it from that record on."""
    return seq is not None and kill.seq is not None and kill.seq >= seq


def tally(
    host: Host,
    target: Target,
    before: Mapping[str, Level],
    new_seq: int | None,
    witness: Witness | None = None,
) -> Casualties:
    """All that can be told at the end of a window; ``before`` is the lineage at its beginning."""
    path, now = path_of(target), kmsg.now_usec(host)
    witness = witness or Witness(reason="nobody watched")
    mine, nameless = kills(host, target, path)
    mine, nameless = merged(mine, nameless, witness.kills(host), new_seq)
    if witness.complete:
        # What was killed in this window and was not seen was somebody else.
        nameless = tuple(k for k in nameless if not since(k, new_seq))
    end = now if target.alive else _end_usec(host, target)
    own = None if path is None else before.get(path)
    group = target.group(host, "memory")
    return Casualties(
        id=target.id,
        runtime=target.runtime,
        path=path,
        init_pid=None if target.init is None else target.init.pid,
        ended=not still_there(host, target),
        kills=mine,
        nameless=sum(end is None or (k.usec or 0) <= end + SLACK_USEC for k in nameless),
        new_seq=new_seq,
        log=kmsg.log(host).reach,
        now_usec=now,
        start_usec=start_usec(host, target),
        end_usec=end,
        oom_kill_before=None if own is None else own.memory.oom_kill,
        levels=levels(host, group, before, mine),
        around=neighbours(host, group, mine[-1].oom_memcg) if mine else Neighbours(),
        exit=None if target.alive else target.exit,
        total_bytes=_total_bytes(host),
        unwatched=witness.reason,
    )


def merged(
    mine: tuple[OomKill, ...],
    nameless: tuple[OomKill, ...],
    seen: tuple[OomKill, ...],
    new_seq: int | None,
) -> tuple[tuple[OomKill, ...], tuple[OomKill, ...]]:
    """What the log tells and what a sensor saw, each kill once; then who is nameless still."""
    told, left = list(mine), list(nameless)
    for one in seen:
        logged = next((k for k in (*told, *left) if _same(k, one, new_seq)), None)
        if logged is None:
            told.append(one)
        elif logged in told:
            told[told.index(logged)] = structs.replace(logged, witnessed=True)
        else:
            left.remove(logged)
            told.append(_named(one, logged))
    return tuple(sorted(told, key=lambda k: k.usec or 0)), tuple(left)


def _same(logged: OomKill, seen: OomKill, new_seq: int | None) -> bool:
    """Whether the log tells of the kill that was seen: a pid is given anew, but not that soon."""
    if logged.victim_pid != seen.victim_pid or logged.witnessed:
        return False
    if logged.seq is not None:
        return since(logged, new_seq)
    return abs((logged.usec or 0) - (seen.usec or 0)) < 2 * SLACK_USEC


def _named(seen: OomKill, logged: OomKill) -> OomKill:
    """Of a report that was held back one line was written, with what the victim held."""
    if logged.global_oom:
        seen = structs.replace(seen, oom_memcg=None, limit_bytes=None, constraint=None)
    return structs.replace(
        seen,
        seq=logged.seq,
        logged=True,
        anon_rss_bytes=logged.anon_rss_bytes,
        file_rss_bytes=logged.file_rss_bytes,
        shmem_rss_bytes=logged.shmem_rss_bytes,
        global_oom=logged.global_oom,
    )


def kills(
    host: Host, target: Target, path: str | None
) -> tuple[tuple[OomKill, ...], tuple[OomKill, ...]]:
    """The kills of this container's processes that the kernel log still tells of.

    Then those since it began of which it cannot be told whose they are.
    """
    born, start = _born_usec(host, target), start_usec(host, target)
    init = None if target.init is None else target.init.pid
    mine: list[OomKill] = []
    nameless: list[OomKill] = []
    for kill in oom.kills(host):
        task = kill.task_memcg
        if task is None and _since(kill, start):
            (mine if kill.victim_pid == init else nameless).append(kill)
        elif task is not None and (within(task, path) or bears(task, target.id)):
            mine += [kill] if _since(kill, born) else []
    return tuple(mine), tuple(nameless)


def _since(kill: OomKill, usec: int | None) -> bool:
    return usec is None or kill.usec is None or kill.usec >= usec - SLACK_USEC


def _born_usec(host: Host, target: Target) -> int | None:
    """Since when a group of that name has been this container's; ``None``: always."""
    if given_once(target.id, target.runtime):
        return None
    created = kmsg.usec_of_wall(host, target.created_at_ns)
    return start_usec(host, target) if created is None else created


def given_once(id: str, runtime: str) -> bool:
    """An engine's id is given once, however often the container is started again; a box's too."""
    return re.fullmatch(r"[0-9a-f]{64}", id) is not None or runtime == "whybox"


def within(path: str, top: str | None) -> bool:
    """Whether a group is ``top`` or below it; everybody is below the root."""
    return top is not None and top != "/" and f"{path}/".startswith(f"{top}/")


def bears(path: str, id: str) -> bool:
    """Whether the group, or one above it, is named as engines name the container of that id."""
    if id not in path:
        return False
    parts = path.split("/")
    above = ("/".join(parts[:n]) for n in range(2, len(parts) + 1))
    return any((recognise(p) or ("", ""))[1] == id for p in above)


def start_usec(host: Host, target: Target) -> int | None:
    """When this run of it began, on the clock of the log."""
    if target.init is not None:
        return kmsg.usec_of_ticks(host, target.init.start_ticks)
    started = None if target.exit is None else target.exit.started_at_ns
    return kmsg.usec_of_wall(host, target.created_at_ns if started is None else started)


def _end_usec(host: Host, target: Target) -> int | None:
    return kmsg.usec_of_wall(host, None if target.exit is None else target.exit.finished_at_ns)


def _total_bytes(host: Host) -> int | None:
    said = re.search(r"MemTotal: +(\d+) kB", host.optional_text("/proc/meminfo") or "")
    return None if said is None else int(said[1]) * 1024
