"""Dead, or only slow: what a process shows of itself, and which rank of a group holds up the others. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

Life = tuple[int, ...]  # changes while a process lives
Position = tuple[int, int]  # collectives begun and done

_STATES = {"T": "stopped", "t": "held by a debugger", "D": "waiting for a disk", "Z": "dead"}
_NO_PROCESS = "X"


class Standstill:
    """For how long each of some processes has shown no life.

    A watcher that was itself held up does not blame the watched for the time: between two looks at most
    ``max_gap_seconds`` count.
    """

    def __init__(self, look: Callable[[int], Life], watched: Collection[int], now: float, max_gap_seconds: float):
        self._look = look
        self._max_gap_seconds = max_gap_seconds
        self._last_look = now
        self._lives = {one: look(one) for one in watched}
        self._still = dict.fromkeys(watched, 0.0)

    def update(self, now: float) -> Mapping[int, float]:
        """Look again; seconds without life for each."""
        gap = min(now - self._last_look, self._max_gap_seconds)
        self._last_look = now
        for one, before in self._lives.items():
            life = self._look(one)
            self._still[one] = 0.0 if life != before else self._still[one] + gap
            self._lives[one] = life
        return self._still


def holding_up(
    still_seconds: Mapping[int, float], limit_seconds: float, positions: Sequence[Position] | None
) -> int | None:
    """The rank that has stood still for longer than the limit while it was its turn; None while there is none.

    Every rank meets the same collectives in the same order, so that ``positions`` say exactly who is behind: those who
    are furthest behind wait for nobody, and all others wait for them. Without positions a rank that stands still may
    be waiting for another, so that all must stand still.
    """
    if not still_seconds:
        return None
    if positions is None:
        behind = list(still_seconds)
        if min(still_seconds.values()) <= limit_seconds:
            return None
    else:
        first = min(positions[rank] for rank in still_seconds)
        behind = [rank for rank in still_seconds if positions[rank] == first]
    longest = max(behind, key=lambda rank: still_seconds[rank])
    return longest if still_seconds[longest] > limit_seconds else None


def life_of(pid: int) -> Life:
    """CPU time and page reads that the kernel has booked for a process; constant when it is stopped or gone.

    All its threads in clock ticks, its first thread in nanoseconds where the kernel tells: a process that only looks
    around twice a second needs minutes for a tick.
    """
    fields = _stat(pid)
    page_reads, user, system = (int(fields[i]) for i in (9, 11, 12)) if fields else (0, 0, 0)
    return page_reads, user + system, run_nanoseconds(pid) or 0


def run_nanoseconds(pid: int) -> int | None:
    """CPU time of the first thread; None where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/schedstat") as schedstat:
            return int(schedstat.read().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def process_state(pid: int) -> str:
    """The kernel's letter: R runs, S sleeps, D waits for a device, T is stopped, Z or X is dead."""
    fields = _stat(pid)
    return fields[0] if fields else _NO_PROCESS


def describe_state(pid: int) -> str:
    """A few words about a process that does not move; empty when the kernel has nothing remarkable to say."""
    words = _STATES.get(process_state(pid))
    return f" (its process is {words})" if words else ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()  # after the name, which may hold anything
    except OSError:
        return []
