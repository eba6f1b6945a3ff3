"""What a step costs in each gear: a table measured at start-up, and where two gears cross."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from shiftcore.layout import Gear

NO_CROSSOVER = "NoCrossover"
CALIBRATION_NOISY = "CalibrationNoisy"
SINGLE_GEAR = "SingleGear"
NOT_CALIBRATED = "NotCalibrated"


@dataclass(frozen=True)
class CostPoint:
    """T(n) at one n: the median of ``samples`` steps, and half the distance from the 10th to the 90th percentile."""

    tokens: int
    median_seconds: float
    spread_seconds: float
    samples: int

    @staticmethod
    def of(tokens: int, seconds: Sequence[float]) -> CostPoint:
        if not seconds:
            raise ValueError(f"no measurement for {tokens} tokens")
        deciles = quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 9
        return CostPoint(tokens, median(seconds), (deciles[8] - deciles[0]) / 2, len(seconds))


@dataclass(frozen=True)
class CostCurve:
    """Piecewise linear T(n) of one gear, made monotone: a larger step is never taken to be cheaper.

    The points are measured with short contexts. ``pair_seconds`` is what each pair of a token and one that it looks
    back at adds; it is the same work in every gear, because a rank attends with the same heads in all of them.
    """

    points: tuple[CostPoint, ...]
    pair_seconds: float = 0.0

    def __post_init__(self) -> None:
        tokens = [point.tokens for point in self.points]
        if not tokens or tokens != sorted(set(tokens)):
            raise ValueError(f"cost points need increasing token counts, got {tokens}")
        if not self.pair_seconds >= 0.0:
            raise ValueError(f"a longer context cannot cost less: {self.pair_seconds} seconds per pair")

    def seconds(self, tokens: int, pairs: int = 0) -> float:
        """Cost of a step with ``tokens`` tokens that look back at ``pairs`` tokens in sum.

        Beyond the last point along the last slope.
        """
        return self._short(tokens) + self.pair_seconds * pairs

    def _short(self, tokens: int) -> float:
        xs = [point.tokens for point in self.points]
        ys = self._monotone()
        if tokens in xs:
            return ys[xs.index(tokens)]
        if len(xs) == 1 or tokens < xs[0]:
            return ys[0]
        right = min(bisect_right(xs, tokens), len(xs) - 1)
        slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
        return ys[right - 1] + slope * (tokens - xs[right - 1])

    def capacity_tokens_per_second(self) -> float:
        """Throughput of back-to-back steps of the largest measured size."""
        return self.points[-1].tokens / self._monotone()[-1]

    def _monotone(self) -> list[float]:
        best = 0.0
        return [best := max(best, point.median_seconds) for point in self.points]


CostTable = Mapping[Gear, CostCurve]


@dataclass(frozen=True)
class Crossover:
    """The step size n* from which the base gear is cheaper than the tp gear, or why there is none."""

    tokens: int | None
    reason: str
    message: str


def find_crossover(table: CostTable, latency: Gear, throughput: Gear) -> Crossover:
    """Compare two curves at their measured points.

    The crossover is the first measured n from which the throughput gear stays cheaper by more than the noise of the
    two medians. NoCrossover says that it never leads and the latency gear does, at the largest n by more than the
    noise; everything between is CalibrationNoisy.
    """
    if latency == throughput:
        return Crossover(None, SINGLE_GEAR, f"{latency} is the only gear")
    if latency not in table or throughput not in table:
        return Crossover(None, NOT_CALIBRATED, f"{latency} and {throughput} have not been measured")
    shared = sorted({p.tokens for p in table[latency].points} & {p.tokens for p in table[throughput].points})
    gains = [_gain(table, latency, throughput, n) for n in shared]
    clear = [gain > noise for gain, noise in gains]
    if clear and clear[-1]:
        first = next(i for i in range(len(clear)) if all(gain > 0 for gain, _ in gains[i:]) and clear[i])
        gain, noise = gains[first]
        return Crossover(
            shared[first], "", f"{throughput} is {_ms(gain)} cheaper than {latency} from {shared[first]} tokens on"
        )
    if any(gain > 0 for gain, _ in gains):
        best = max(range(len(gains)), key=lambda i: gains[i][0])
        gain, noise = gains[best]
        return Crossover(
            None,
            CALIBRATION_NOISY,
            f"{throughput} leads {latency} by {_ms(gain)} at {shared[best]} tokens with a noise of {_ms(noise)}, "
            "but not clearly up to the largest step measured",
        )
    largest = shared[-1] if shared else 0
    if gains and -gains[-1][0] < gains[-1][1]:
        loss, noise = abs(gains[-1][0]), gains[-1][1]
        text = f"{latency} leads {throughput} by {_ms(loss)} at {largest} tokens with a noise of {_ms(noise)}"
        return Crossover(None, CALIBRATION_NOISY, text)
    return Crossover(None, NO_CROSSOVER, f"{latency} is as cheap as {throughput} up to {largest} tokens per step")


def _gain(table: CostTable, latency: Gear, throughput: Gear, tokens: int) -> tuple[float, float]:
    """(seconds that the throughput gear saves at this n, noise of that difference).

    From the monotone curves, so that the crossover and the choice of gears agree.
    """
    a = next(p for p in table[latency].points if p.tokens == tokens)
    b = next(p for p in table[throughput].points if p.tokens == tokens)
    # The spread of a median of k samples shrinks with sqrt(k).
    noise = (a.spread_seconds**2 / a.samples + b.spread_seconds**2 / b.samples) ** 0.5
    return table[latency].seconds(tokens) - table[throughput].seconds(tokens), 2 * noise


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
