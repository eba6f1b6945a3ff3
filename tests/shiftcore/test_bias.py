from __future__ import annotations

import pytest
from shiftcore.bias import Staffing, biased_mode
from shiftcore.policy import Mode

AUTO, LATENCY, THROUGHPUT = Mode.AUTO, Mode.LATENCY, Mode.THROUGHPUT


@pytest.mark.parametrize(
    ("case", "wanted", "asked", "serving", "replacing", "busy", "biased", "mode"),
    [
        ("all serve", AUTO, 2, 2, False, 1.0, False, AUTO),
        ("all serve again", AUTO, 2, 2, False, 1.0, True, AUTO),
        ("one is away, and the other full", AUTO, 2, 1, False, 1.0, False, THROUGHPUT),
        ("one is away, and the other has room", AUTO, 2, 1, False, 0.99, False, AUTO),
        ("it is still busy enough", AUTO, 2, 1, False, 0.5, True, THROUGHPUT),
        ("it is not any more, since a moment", AUTO, 2, 1, False, 0.49, True, THROUGHPUT),
        ("between two pods of a rollout", AUTO, 2, 2, True, 0.6, True, THROUGHPUT),
        ("a rollout of which nobody is away yet", AUTO, 2, 2, True, 1.0, False, THROUGHPUT),
        ("nobody serves", AUTO, 2, 0, True, 0.0, False, AUTO),
        ("nobody is asked for", AUTO, 0, 0, False, 0.0, True, AUTO),
        ("more serve than are asked for", AUTO, 1, 2, False, 1.0, False, AUTO),
        ("the user pins latency", LATENCY, 2, 1, True, 1.0, False, LATENCY),
        ("the user pins throughput", THROUGHPUT, 2, 2, False, 0.0, False, THROUGHPUT),
    ],
)
def test_bias(
    case: str, wanted: Mode, asked: int, serving: int, replacing: bool, busy: float, biased: bool, mode: Mode
) -> None:
    assert biased_mode(wanted, Staffing(asked, serving, replacing, busy), biased) is mode, case


@pytest.mark.parametrize(
    ("busy", "calm_seconds", "mode"),
    [(0.49, 59.9, THROUGHPUT), (0.49, 60.0, AUTO), (0.5, 60.0, THROUGHPUT), (1.0, 600.0, THROUGHPUT)],
)
def test_only_a_lasting_calm_ends_the_bias_early(busy: float, calm_seconds: float, mode: Mode) -> None:
    assert biased_mode(AUTO, Staffing(2, 1, False, busy), True, calm_seconds) is mode
