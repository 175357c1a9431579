"""Which names mean nearly the same: tracepoints near to a function of the kernel. Pure."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

#: What the kernel says in several words in one place and in one in another.
_PHRASES = (
    ("try_to_free_mem_cgroup_pages", "memcg_reclaim"),
    ("try_to_free_pages", "direct_reclaim"),
    ("mem_cgroup", "memcg"),
    ("try_to_free", "reclaim"),
    ("out_of_memory", "oom"),
    ("oom_kill_process", "oom_mark_victim"),
    ("shrink_lruvec", "vmscan_lru_shrink"),
    ("shrink_node", "vmscan_reclaim"),
    ("submit_bio", "block_bio_queue"),
    ("wake_up", "wakeup"),
    ("kernel_clone", "process_fork_clone"),
    ("do_exit", "process_exit"),
    ("context_switch", "sched_switch"),
    ("schedule", "sched_switch"),
    ("ip_rcv", "netif_receive_skb"),
)

#: Words that say how a thing is done, and not what.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "do sys se ia32 x64 arm64 compat ksys try to the a in of for raw common generic internal"
        " locked slowpath fast slow enter exit begin end mm vfs helper impl fn op ops func handler",
    )
)

#: System calls are what most functions are near to: they say the same words as many functions do.
_SYSTEM_WEIGHT = 0.35
_PREFIX_WEIGHT = 0.75
_SHORTEST_PREFIX = 4

#: Nearer than this, and not much farther than the nearest.
_LEAST, _LEAST_OF_BEST = 0.3, 0.6


def tracepoints(function: str, events: Iterable[str], most: int = 4) -> tuple[str, ...]:
    """The events whose names are nearest to a function's, the nearest first.

    >>> tracepoints("do_sys_openat2", ["syscalls/sys_enter_openat", "sched/sched_switch"])
    ('syscalls/sys_enter_openat',)
    """
    known = list(events)
    tokens = {event: _tokens_of_event(event) for event in known}
    rarity = _rarity(tokens.values())
    wanted = {
        token: rarity.get(token, max(rarity.values(), default=1.0)) for token in _tokens(function)
    }
    scored = ((_closeness(wanted, tokens[event], rarity), event) for event in known)
    best = sorted((-score, event) for score, event in scored if score >= _LEAST)
    return tuple(event for score, event in best[:most] if score <= _LEAST_OF_BEST * best[0][0])


def _tokens(name: str) -> list[str]:
    """The words that say something, each once.

    >>> _tokens("__x64_sys_openat2")
    ['openat']
    """
    for phrase, meaning in _PHRASES:
        if phrase in name:
            name = name.replace(phrase, f"_{meaning}_")
            break
    words = (word for word in re.split(r"[_./]+", name.lower()) if word not in _EMPTY)
    plain = (word.rstrip("0123456789") or word for word in words)
    return list(dict.fromkeys(word for word in plain if word and word not in _EMPTY))


def _tokens_of_event(event: str) -> Mapping[str, float]:
    system, _, name = event.partition("/")
    found = {} if system == "syscalls" else dict.fromkeys(_tokens(system), _SYSTEM_WEIGHT)
    return found | dict.fromkeys(_tokens(name), 1.0)


def _rarity(all_tokens: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    lists = list(all_tokens)
    count = Counter(token for tokens in lists for token in tokens)
    return {token: math.log((len(lists) + 1) / seen) + 0.1 for token, seen in count.items()}


def _closeness(
    wanted: Mapping[str, float], tokens: Mapping[str, float], rarity: Mapping[str, float]
) -> float:
    """The cosine of the angle between the two, with rare words weighing more."""
    shared = 0.0
    for word, weight in wanted.items():
        matches = (_alike(word, token) * tokens[token] * rarity[token] for token in tokens)
        shared += weight * max(matches, default=0.0)
    length = math.hypot(*wanted.values()) * math.hypot(*(tokens[t] * rarity[t] for t in tokens))
    return shared / length if length else 0.0


def _alike(one: str, other: str) -> float:
    if one == other:
        return 1.0
    shorter, longer = sorted((one, other), key=len)
    if len(shorter) >= _SHORTEST_PREFIX and longer.startswith(shorter):
        return _PREFIX_WEIGHT
    return 0.0


def names(wanted: str, known: Sequence[str], most: int = 5) -> tuple[str, ...]:
    """Names that somebody may have meant.

    >>> names("vfs_raed", ["vfs_read", "vfs_write", "ksys_read", "do_exit"])
    ('vfs_read', 'vfs_write')
    """
    import difflib

    # A function that the compiler has split or cloned has a suffix: that is what was meant.
    suffixed = [name for name in known if name.startswith(f"{wanted}.")]
    alike = difflib.get_close_matches(wanted, _candidates(wanted, known), n=most, cutoff=0.7)
    return tuple(dict.fromkeys([*suffixed, *alike]))[:most]


def _candidates(wanted: str, known: Sequence[str]) -> list[str]:
    """Those worth comparing: of 100,000 names each comparison counts."""
    letters, size = set(wanted), len(wanted)
    return [
        name
        for name in known
        if abs(len(name) - size) <= 6 and len(letters.symmetric_difference(name)) <= 5
    ]
