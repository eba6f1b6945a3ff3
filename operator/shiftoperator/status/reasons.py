"""Every reason that a condition can carry. docs/CONDITIONS.md says what to do about each, and a test holds it to this.

Reasons of a runtime that failed are REASON_… in shiftprotos.contract, those of a refused resource in errors, those of a
decision to scale in shiftcore.scaling.
"""

from __future__ import annotations

from shiftprotos import contract

from shiftoperator.errors import (
    CLAIM_MISSING,
    FORBIDDEN,
    INVALID_POD_TEMPLATE,
    INVALID_SPEC,
    NAME_CONFLICT,
    REFUSED_BY_API,
    SECRET_MISSING,
    WRITE_FAILING,
)

# What was asked for.
SUSPENDED = "Suspended"  # spec.suspend is true and no pod runs
SUSPENDING = "Suspending"  # spec.suspend is true and pods still end their requests
NOT_SUSPENDED = "NotSuspended"  # spec.suspend is false or absent
SCALED_TO_ZERO = "ScaledToZero"  # 0 replicas are asked for
# Pods come, serve and go.
ALL_PODS_READY = "AllPodsReady"  # as many pods of the present spec serve as are asked for
SCALING_OUT = "ScalingOut"  # all pods of the last settled size serve, and more are on their way
PODS_STARTING = "PodsStarting"  # pods load, and without them the size last served is not reached
ROLLING_OUT = "RollingOut"  # pods of an earlier spec are being replaced
ROLLED_BACK = "RolledBack"  # pods of the present spec failed, and those of the last good one run
ROLLOUT_PAUSED = "RolloutPaused"  # spec.rollout.paused is true
PODS_SERVE = "PodsServe"  # at least one pod serves
NO_POD_READY = "NoPodReady"  # no pod is ready, so there is nobody to ask
SETTLED = "Settled"  # the pods are as asked for
PODS_STOPPING = "PodsStopping"  # more pods are there than are asked for, or some end their requests
# Why a pod has no node.
PODS_SCHEDULED = "PodsScheduled"  # every pod has a node
SCHEDULING = "Scheduling"  # the scheduler has not looked at any pod yet
NO_PODS = "NoPods"  # there is no pod
UNSCHEDULABLE = "Unschedulable"  # the scheduler finds no node
SCHEDULING_GATED = "SchedulingGated"  # somebody's scheduling gate holds the pod back
WAITING_FOR_DRAIN = "WaitingForDrain"  # the pod waits for the place of one that ends its requests: no shortage
FAILED_CREATE = "FailedCreate"  # the API server refuses to create pods: a quota or an admission rule
# Why a container does not start, as the kubelet says it.
IMAGE_PULL_BACK_OFF = "ImagePullBackOff"  # the image cannot be pulled (ErrImagePull is shown as this too)
INVALID_IMAGE_NAME = "InvalidImageName"
ERR_IMAGE_NEVER_PULL = "ErrImageNeverPull"  # the image is not on the node and may not be pulled
CREATE_CONTAINER_CONFIG_ERROR = "CreateContainerConfigError"  # a Secret, ConfigMap or key is missing
CREATE_CONTAINER_ERROR = "CreateContainerError"
RUN_CONTAINER_ERROR = "RunContainerError"
CONTAINER_WAITING = "ContainerWaiting"  # another reason of the kubelet, named in the message
# How a container ended.
CONTAINER_EXITED = "ContainerExited"  # without saying why in its termination message
RUNTIME_FAILED = "RuntimeFailed"  # with a reason that this operator does not know, named in the message
# Start-up, by the least advanced pod.
CONTAINER_STARTING = "ContainerStarting"  # no container runs yet
NOT_REPORTED = "NotReported"  # a pod has not answered on its control port
STARTING = "Starting"  # the process runs and has not come to its first phase
FETCHING = "Fetching"
STARTING_RANKS = "StartingRanks"
VERIFYING = "Verifying"
OPENING = "Opening"
LOADING = "Loading"
SIZING_CACHE = "SizingCache"
WARMING_UP = "WarmingUp"
CALIBRATING = "Calibrating"
SELF_CHECKING = "SelfChecking"
LOADED = "Loaded"  # every pod has the whole model in memory
# Gears and policy.
GEARS_AGREE = "GearsAgree"  # all gears computed the same in every ready pod
APPLYING = "Applying"  # not every ready pod has applied the policy
APPLIED = "Applied"  # every rank of every ready pod has
# Targets.
TARGETS_MET = "TargetsMet"
TTFT_MISSED = "TtftMissed"
TPOT_MISSED = "TpotMissed"
NO_TARGET = "NoTarget"  # spec.slo names none
NO_TRAFFIC = "NoTraffic"  # nothing finished in the last minute
# Less than asked for.
AS_ASKED = "AsAsked"  # nothing is missing, or what is missing is on its way
PODS_FAILING = "PodsFailing"  # pods fail while others serve
PODS_BLOCKED = "PodsBlocked"  # pods cannot start while others serve
SPEC_REFUSED = "SpecRefused"  # pods run an earlier spec, because this one was refused
POD_SILENT = "PodSilent"  # a ready pod has not answered on its control port for a minute
POLICY_LATE = "PolicyLate"  # a ready pod has not applied the policy for a minute
ROTATION_IGNORED = "RotationIgnored"  # new certificates were asked for at what is no time
# The autoscaler keeps out.
DISABLED = "Disabled"  # spec.autoscaling.mode
EXTERNAL_SCALER = "ExternalScaler"  # a HorizontalPodAutoscaler drives /scale
NOT_DECIDED = "NotDecided"  # the resource was refused
# A scale-in, pod by pod.
DRAINING = "Draining"  # a chosen pod finishes what it runs
PODS_LEAVING = "PodsLeaving"  # the replicas are down, the pods not yet gone
SCALE_IN_GIVEN_UP = "ScaleInGivenUp"  # the chosen pod is to stay, and is replaced if it drains already
ANOTHER_POD_LEFT = "AnotherPodLeft"  # another pod left in its place

_REFUSED = (INVALID_SPEC, NAME_CONFLICT, FORBIDDEN, REFUSED_BY_API)
_HELD_UP = (*_REFUSED, WRITE_FAILING)
# Before pods are replaced; REASON_MODEL_NOT_FOUND is said then as well.
_UNMET = (INVALID_POD_TEMPLATE, SECRET_MISSING, CLAIM_MISSING)
_FAILED = (
    contract.REASON_INVALID_LAYOUT,
    contract.REASON_MODEL_NOT_FOUND,
    contract.REASON_FETCH_FAILED,
    contract.REASON_MODEL_DAMAGED,
    contract.REASON_MODEL_UNSUPPORTED,
    contract.REASON_OUT_OF_MEMORY,
    contract.REASON_INVALID_ARGUMENT,
    contract.REASON_SELF_CHECK_FAILED,
    contract.REASON_RANK_FAILED,
    contract.REASON_START_TIMEOUT,
    contract.REASON_INTERNAL,
    CONTAINER_EXITED,
    RUNTIME_FAILED,
)
_HELD = (
    IMAGE_PULL_BACK_OFF,
    INVALID_IMAGE_NAME,
    ERR_IMAGE_NEVER_PULL,
    CREATE_CONTAINER_CONFIG_ERROR,
    CREATE_CONTAINER_ERROR,
    RUN_CONTAINER_ERROR,
    CONTAINER_WAITING,
    UNSCHEDULABLE,
    SCHEDULING_GATED,
)
_TROUBLE = (*_FAILED, *_HELD, FAILED_CREATE)
_SHARED_WITH_KUBELET = {"ErrImagePull": IMAGE_PULL_BACK_OFF}

# The reason of a pod that has come to this phase and not ended it.
OF_PHASE = {
    contract.PHASE_FETCH: FETCHING,
    contract.PHASE_RANKS: STARTING_RANKS,
    contract.PHASE_VERIFY: VERIFYING,
    contract.PHASE_OPEN: OPENING,
    contract.PHASE_LOAD: LOADING,
    contract.PHASE_KV: SIZING_CACHE,
    contract.PHASE_WARM: WARMING_UP,
    contract.PHASE_CALIBRATE: CALIBRATING,
    contract.PHASE_SELF_CHECK: SELF_CHECKING,
}

OF_CONDITION = {
    contract.CONDITION_READY: (
        *(ALL_PODS_READY, SCALING_OUT, SCALED_TO_ZERO, SUSPENDED, PODS_STARTING, ROLLING_OUT, WAITING_FOR_DRAIN),
        *(ROLLED_BACK, ROLLOUT_PAUSED),
        *_TROUBLE,
        *_HELD_UP,
        *_UNMET,
    ),
    contract.CONDITION_AVAILABLE: (PODS_SERVE, NO_POD_READY, SCALED_TO_ZERO, SUSPENDED),
    contract.CONDITION_PROGRESSING: (
        *(SETTLED, PODS_STARTING, SCALING_OUT, ROLLING_OUT, PODS_STOPPING, WAITING_FOR_DRAIN),
        *(ROLLED_BACK, ROLLOUT_PAUSED),
        *_TROUBLE,
        *_HELD_UP,
        *_UNMET,
    ),
    contract.CONDITION_SCHEDULED: (
        *(PODS_SCHEDULED, SCHEDULING, NO_PODS),
        *(UNSCHEDULABLE, SCHEDULING_GATED, WAITING_FOR_DRAIN, FAILED_CREATE),
    ),
    contract.CONDITION_MODEL_LOADED: (
        *(LOADED, NO_PODS, CONTAINER_STARTING, NOT_REPORTED, STARTING, *OF_PHASE.values()),
        *_FAILED,
    ),
    contract.CONDITION_SHIFT_VERIFIED: (GEARS_AGREE, NOT_REPORTED, NO_POD_READY, contract.REASON_SELF_CHECK_FAILED),
    contract.CONDITION_POLICY_IN_SYNC: (APPLIED, APPLYING, NO_POD_READY),
    # And those of shiftcore.scaling.
    contract.CONDITION_SCALING_ACTIVE: (
        *(DISABLED, EXTERNAL_SCALER, SCALED_TO_ZERO, SUSPENDED, NOT_DECIDED),
        *(DRAINING, PODS_LEAVING, SCALE_IN_GIVEN_UP, ANOTHER_POD_LEFT),
        *_REFUSED,
    ),
    contract.CONDITION_SLO_MET: (TARGETS_MET, TTFT_MISSED, TPOT_MISSED, NO_TARGET, NO_TRAFFIC, NO_POD_READY),
    contract.CONDITION_DEGRADED: (
        *(AS_ASKED, NO_POD_READY, PODS_FAILING, PODS_BLOCKED, SPEC_REFUSED, ROLLED_BACK, POD_SILENT, POLICY_LATE),
        *(ROTATION_IGNORED, WRITE_FAILING),
    ),
    contract.CONDITION_PAUSED: (NOT_SUSPENDED, SUSPENDING, SUSPENDED, ROLLOUT_PAUSED),
}


def of_failure(reason: str, message: str) -> tuple[str, str]:
    """A reason from the list, and the message, which names any other."""
    return (reason, message) if reason in _FAILED else (RUNTIME_FAILED, f"{reason}: {message}")


def of_obstacle(reason: str, message: str) -> tuple[str, str]:
    """A reason from the list, and the message, which names any other."""
    reason = _SHARED_WITH_KUBELET.get(reason, reason)
    return (reason, message) if reason in _HELD else (CONTAINER_WAITING, f"{reason}: {message}")
