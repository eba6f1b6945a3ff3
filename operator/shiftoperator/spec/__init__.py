"""A ShiftDeployment's spec, parsed and checked once: a module per section.

The CRD refuses bad specs at `kubectl apply`. What it refuses is refused here again, because a resource may have been
stored under an older CRD.
"""

from shiftoperator.spec.asked import percentile_asked, pods_asked, replicas_asked, section
from shiftoperator.spec.cache import Cache
from shiftoperator.spec.engine import Engine
from shiftoperator.spec.model import Model
from shiftoperator.spec.placement import Placement
from shiftoperator.spec.rollout import Rollout, Strategy
from shiftoperator.spec.runtime import ResourceClaim, Runtime
from shiftoperator.spec.scaling import PERCENTILES, Autoscaling
from shiftoperator.spec.schedules import Schedule
from shiftoperator.spec.service import TLS_AUTHORITY, TLS_CERTIFICATE, TLS_KEY, Service, ServingTls
from shiftoperator.spec.shift import DEFAULT_ADAPTIVE_MAX, POLICIES, Adaptive, AdaptiveMode, Calibration, Policy
from shiftoperator.spec.whole import Spec, parse, with_policy

__all__ = [
    "DEFAULT_ADAPTIVE_MAX",
    "PERCENTILES",
    "POLICIES",
    "TLS_AUTHORITY",
    "TLS_CERTIFICATE",
    "TLS_KEY",
    "Adaptive",
    "AdaptiveMode",
    "Autoscaling",
    "Cache",
    "Calibration",
    "Engine",
    "Model",
    "Placement",
    "Policy",
    "ResourceClaim",
    "Rollout",
    "Runtime",
    "Schedule",
    "Service",
    "ServingTls",
    "Spec",
    "Strategy",
    "parse",
    "percentile_asked",
    "pods_asked",
    "replicas_asked",
    "section",
    "with_policy",
]
