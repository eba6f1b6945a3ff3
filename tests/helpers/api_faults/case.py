"""One plan: a workload and the faults that strike while it runs. Its line makes it again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

# What a call to the API server is to the faults. Events of Kubernetes are never struck: they are best effort.
WRITE, READ, LEASE, WATCH_EVENT = "write", "read", "lease", "event"
# Writes that are counted by themselves too: on them hangs what was decided, and among all they are rarely met.
STATUS, SCALE = "status", "scale"

LOSE_REPLY = "lose-reply"  # the server acted, and nobody hears of it
LOSE_REQUEST = "lose-request"
CONFLICT = "409"
TOO_MANY = "429"
SERVER_ERROR = "500"
STALL = "stall"  # the call arrives that many tenths of a second late, also when its caller has given up
HIDE = "hide"  # that many watch events are not passed on
STALE = "stale"  # from this read on, that many lists are answered as they were answered before
GONE = "gone"  # the watch says 410 in place of this event
CUT = "cut"  # all watches end at this call
KILL_BEFORE = "kill-before"  # SIGKILL for the operator, the call does not arrive
KILL_AFTER = "kill-after"
OUTAGE = "outage"  # from this call on nothing is answered for that many tenths of a second

# kind -> (what it may strike, amounts to choose from)
KINDS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    LOSE_REPLY: ((WRITE, LEASE), (1,)),
    LOSE_REQUEST: ((WRITE, READ), (1, 2)),
    CONFLICT: ((WRITE,), (1, 2, 3)),
    TOO_MANY: ((WRITE, READ), (1, 2)),
    SERVER_ERROR: ((WRITE, READ, LEASE), (1, 2)),
    STALL: ((WRITE, READ, LEASE), (7, 20, 66)),
    HIDE: ((WATCH_EVENT,), (1, 3, 20)),
    STALE: ((READ,), (1, 3)),
    GONE: ((WATCH_EVENT,), (1,)),
    CUT: ((WRITE,), (1,)),
    KILL_BEFORE: ((WRITE,), (1,)),
    KILL_AFTER: ((WRITE,), (1,)),
    OUTAGE: ((WRITE, READ), (15, 30)),
}
# Up to which call of its class a fault may wait: about as many as a workload makes.
_LAST = {WRITE: 26, STATUS: 12, SCALE: 2, READ: 60, LEASE: 4, WATCH_EVENT: 16}
# Of faults that strike writes, those that are to strike one of these.
_STATUS_SHARE, _SCALE_SHARE = 0.35, 0.35
# Workloads in which the operator scales.
_SCALING = {"scale-in-by-itself"}
_MOST_FAULTS = 3
_STANDBY_SHARE = 0.12


@dataclass(frozen=True)
class Fault:
    """Strikes the `at`-th call (from 1) of its class."""

    kind: str
    target: str
    at: int
    amount: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.target}:{self.at}:{self.amount}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        kind, target, at, amount = text.split(":")
        if kind not in KINDS or (WRITE if target in (STATUS, SCALE) else target) not in KINDS[kind][0]:
            raise ValueError(f"no fault {text!r}: use {', '.join(KINDS)} with one of their targets")
        return cls(kind, target, int(at), int(amount))

    @classmethod
    def draw(cls, rng: random.Random, scaling: bool) -> Fault:
        kind = rng.choice(list(KINDS))
        target = rng.choice(KINDS[kind][0])
        if target == WRITE:
            share = rng.random()
            target = STATUS if share < _STATUS_SHARE else WRITE
            target = SCALE if scaling and share > 1 - _SCALE_SHARE else target
        return cls(kind, target, rng.randint(1, _LAST[target]), rng.choice(KINDS[kind][1]))


@dataclass(frozen=True)
class Case:
    workload: str
    faults: tuple[Fault, ...] = ()
    standby: bool = False  # a second operator, which the faults spare

    def __str__(self) -> str:
        return f"workload={self.workload} standby={int(self.standby)} faults={','.join(map(str, self.faults))}"

    @classmethod
    def parse(cls, line: str) -> Case:
        fields = dict(field.split("=", 1) for field in line.split())
        faults = tuple(Fault.parse(text) for text in fields["faults"].split(",") if text)
        return cls(fields["workload"], faults, fields.get("standby") == "1")

    @classmethod
    def draw(cls, seed: int, workload: str) -> Case:
        rng = random.Random(seed)
        faults = tuple(Fault.draw(rng, workload in _SCALING) for _ in range(rng.randint(1, _MOST_FAULTS)))
        return cls(workload, faults, rng.random() < _STANDBY_SHARE)

    def smaller(self) -> Iterator[Case]:
        if self.standby:
            yield replace(self, standby=False)
        for i, fault in enumerate(self.faults):
            rest = self.faults[:i] + self.faults[i + 1 :]
            yield replace(self, faults=rest)
            least = min(KINDS[fault.kind][1])
            if fault.amount > least:
                yield replace(self, faults=(*self.faults[:i], replace(fault, amount=least), *self.faults[i + 1 :]))
