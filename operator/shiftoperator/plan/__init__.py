"""What to do about what was seen: pure functions, one per question."""

from shiftoperator.plan.children import (
    REVISIONS_KEPT,
    Changes,
    changes,
    contains,
    foreign,
    in_words_of_the_spec,
    revision,
)
from shiftoperator.plan.control import access, control_token, rotation_asked, rotation_ignored, stored_certificates
from shiftoperator.plan.fetches import Moved, followed
from shiftoperator.plan.loads import SHARE_SECONDS, TokenSample, observation, pod_load, sample, throughput_share
from shiftoperator.plan.policies import (
    PolicyPlan,
    adaptive_tokens,
    behind,
    is_calm,
    is_short,
    policy,
    wanted_policy,
)
from shiftoperator.plan.schedules import InForce, in_force
from shiftoperator.plan.settled import Found, found

__all__ = [
    "REVISIONS_KEPT",
    "SHARE_SECONDS",
    "Changes",
    "Found",
    "InForce",
    "Moved",
    "PolicyPlan",
    "TokenSample",
    "access",
    "adaptive_tokens",
    "behind",
    "changes",
    "contains",
    "control_token",
    "followed",
    "foreign",
    "found",
    "in_force",
    "in_words_of_the_spec",
    "is_calm",
    "is_short",
    "observation",
    "pod_load",
    "policy",
    "revision",
    "rotation_asked",
    "rotation_ignored",
    "sample",
    "stored_certificates",
    "throughput_share",
    "wanted_policy",
]
