"""How many pods: shift before scale.

A pod that is slow in its tp gear may still have room in its throughput gear, and shifting is free while a new pod costs
GPUs and a long start. So capacity here is always that of the throughput gear, and a high utilisation adds a pod only
once the pods run that gear. Signs that shifting cannot help go past this gate: a step that only decodes may rightly
never leave the tp gear.

Pure: the clock and what is remembered between two decisions are handed in. `rules` reads as the specification,
`decision` puts the rules in order and holds each to its window and its bounds.
"""

from shiftcore.scaling.decision import decide, decide_while_leaving
from shiftcore.scaling.demand import throughput_share, utilisation
from shiftcore.scaling.model import (
    Action,
    Decision,
    Limits,
    Memory,
    MetricsLoss,
    Mode,
    Observation,
    PodLoad,
    Reason,
)
from shiftcore.scaling.survivors import Survivors, survivors
from shiftcore.scaling.victims import least_loaded

__all__ = [
    "Action",
    "Decision",
    "Limits",
    "Memory",
    "MetricsLoss",
    "Mode",
    "Observation",
    "PodLoad",
    "Reason",
    "Survivors",
    "decide",
    "decide_while_leaving",
    "least_loaded",
    "survivors",
    "throughput_share",
    "utilisation",
]
