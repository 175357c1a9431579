"""What is known of a container that is stopped, was stopped, or may be."""

from msgspec import Struct

from whybox.kernel import forced
from whybox.kernel.disposition import Disposition
from whybox.kernel.forced import Kill
from whybox.kernel.signals import KILL, Sent
from whybox.kernel.stopping import Member, Prospect
from whybox.kernel.target import Exit


class Observation(Struct, frozen=True, kw_only=True):
    """A container before and after, and every signal meanwhile that has to do with its end."""

    elapsed_ns: int
    stop_signal: int
    prospect: Prospect | None
    """``None``: it was dead already."""
    after: Disposition | None
    """Its first process at the end; ``None``: it had ended."""
    frozen: bool | None
    sent: tuple[Sent, ...]
    unwatched: str | None
    """Why nobody watched what was sent."""
    oom_kills: int
    """By the OOM killer within the window, as the group counts them."""
    zombies: tuple[int, ...]
    """Who had ended before: what is sent to these kills nobody."""
    engine_asked: bool
    """Whether the engine's events tell of a stop signal before the window."""
    exit: Exit | None

    @property
    def ended(self) -> bool:
        """Whether its first process ended within the window."""
        return self.prospect is not None and (self.after is None or self.after.ended)

    def kills(self, prospect: Prospect) -> tuple[Kill, ...]:
        """Who was killed, by whom."""
        return forced.kills(
            self.sent,
            prospect.init,
            prospect.inside,
            first_ended=self.ended,
            oom_kills=self.oom_kills,
            zombies=self.zombies,
        )

    def told_alone(self, prospect: Prospect) -> Member | None:
        """The one child that its first process passed a signal on to, as inits do."""
        first = prospect.init.pid
        told = {one.pid for one in self.sent if one.sender_pid == first and one.signal != KILL}
        found = [one for one in prospect.members if one.id.pid in told - {first}]
        return found[0] if len(found) == 1 and found[0].ppid == first else None

    def asks(self, prospect: Prospect) -> tuple[Sent, ...]:
        """The stop signals that came to its first process from outside."""
        return forced.asks(self.sent, prospect.init, prospect.inside, self.stop_signal)
