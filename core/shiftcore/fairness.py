"""Whose turn it is: tenants share the pod by the tokens computed for them."""

from __future__ import annotations

from collections import Counter

_MAX_IDLE_TENANTS = 4096  # names come from clients


class TenantShares:
    """A counter of computed tokens per tenant; of those that wait, the one with the least goes first.

    A tenant that begins to wait starts no lower than the least served of those that wait already: time spent idle is
    no credit. What it had above that stays: leaving the queue for a moment forgets no debt.
    """

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._waiting: Counter[str] = Counter()
        self._floor = 0  # of the tenant that left last

    def enter(self, tenant: str) -> None:
        """A request of this tenant begins to wait."""
        if not self._waiting[tenant]:
            floor = min((self._served[other] for other in +self._waiting), default=self._floor)
            self._served[tenant] = max(self._served.get(tenant, 0), floor)
        self._waiting[tenant] += 1

    def leave(self, tenant: str) -> None:
        """A request of this tenant waits no more."""
        self._floor = self._served[tenant]
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            self._forget_idle()

    def charge(self, tenant: str, tokens: int) -> None:
        """Tokens that a step computes for this tenant."""
        self._served[tenant] = self._served.get(tenant, 0) + tokens

    def served(self, tenant: str) -> int:
        return self._served.get(tenant, 0)

    def reset(self) -> None:
        """Nobody is here: nobody owes anybody."""
        assert not self._waiting, f"{len(self._waiting)} tenants wait"
        self._served.clear()
        self._floor = 0

    def _forget_idle(self) -> None:
        if len(self._served) - len(self._waiting) > _MAX_IDLE_TENANTS:
            idle = (tenant for tenant in self._served if tenant not in self._waiting)
            del self._served[min(idle, key=self._served.__getitem__)]
