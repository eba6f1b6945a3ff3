"""What a service promises its users, and how many of them it kept its word to."""

from __future__ import annotations

from dataclasses import dataclass

from shiftsim.errors import UserError
from shiftsim.generation import Generation
from shiftsim.measures import Measures


@dataclass(frozen=True)
class Slo:
    """Targets in seconds, None where none is set; a service meets them when so many per cent of its requests do."""

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    percentile: int = 95

    def __post_init__(self) -> None:
        for name, value in (("TTFT", self.ttft_seconds), ("TPOT", self.tpot_seconds)):
            if value is not None and not value > 0:
                raise UserError(f"a {name} target of {value * 1000:g} ms must be above 0")
        if not 1 <= self.percentile <= 100:
            raise UserError(f"percentile {self.percentile} must lie in 1..100")

    def begins_in_time(self, ttft_seconds: float) -> bool:
        return self.ttft_seconds is None or ttft_seconds <= self.ttft_seconds

    def reads_in_time(self, tpot_seconds: float) -> bool:
        return self.tpot_seconds is None or tpot_seconds <= self.tpot_seconds


def ttft(request: Generation) -> float:
    """Seconds; of a request that has a token."""
    assert request.first_token_seconds is not None, f"request {request.id} has no token"
    return request.first_token_seconds - request.arrival_seconds


def tpot(request: Generation, now: float) -> float:
    """Seconds per token after the first, of a request that ends now; 0 where there is none."""
    assert request.first_token_seconds is not None, f"request {request.id} has no token"
    return (now - request.first_token_seconds) / max(1, request.num_output - 1)


class Attainment(Measures):
    """Measures that also count who met both targets; a request of one token has only the first."""

    def __init__(self, slo: Slo) -> None:
        super().__init__()
        self.met = 0
        self._slo = slo

    def finished(self, request: Generation, now: float) -> None:
        super().finished(request, now)
        self.met += self._slo.begins_in_time(ttft(request)) and self._slo.reads_in_time(tpot(request, now))
