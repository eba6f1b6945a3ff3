"""What the demo says of a pod's state."""

import sys
from pathlib import Path

import pytest
from shiftprotos.v1 import control_pb2

sys.path.append(str(Path(__file__).resolve().parents[2]))

from examples.demo import show


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (control_pb2.THRESHOLD_SOURCE_CALIBRATION, "threshold in use: 0 (source: calibration)"),
        (control_pb2.THRESHOLD_SOURCE_PINNED, "pinned"),
    ],
)
def test_a_threshold_of_0_is_not_called_pinned(source: control_pb2.ThresholdSource, words: str) -> None:
    state = control_pb2.GetStateResponse(threshold_tokens=0, threshold_source=source)
    assert show.crossover(state).endswith(f"; {words}")
