"""Synthetic load: arrivals of a Poisson process, requests of one size."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from shiftsim.errors import UserError
from shiftsim.trace import Arrival


def arrivals(rate: float, requests: int, prompt_tokens: int, output_tokens: int, seed: int = 0) -> Iterator[Arrival]:
    """``rate``: requests per second in the long run. The same seed gives the same moments, at each rate scaled."""
    if not 0 < rate < float("inf"):
        raise UserError(f"a rate of {rate:g} requests per second must be above 0")
    for name, value in (("requests", requests), ("prompt tokens", prompt_tokens), ("output tokens", output_tokens)):
        if value < 1:
            raise UserError(f"{value} {name} must be at least 1")
    random, now = Random(seed), 0.0  # noqa: S311 - a load, no secret
    for _ in range(requests):
        yield Arrival(now, prompt_tokens, output_tokens)
        now += random.expovariate(1.0) / rate
