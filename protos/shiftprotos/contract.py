"""Names that the operator, the runtime, the chart and the CRD share. One home for each of them.

The chart and the CRD cannot import this file, so tests/contract holds them against it.
"""

API_GROUP = "shiftparallel.dev"
API_VERSION = "v1alpha1"
KIND = "ShiftDeployment"
PLURAL = "shiftdeployments"
SINGULAR = "shiftdeployment"
SHORT_NAME = "shd"

# Ports of a runtime pod.
INFERENCE_PORT = 9000  # gRPC Inference, grpc.health.v1
OPENAI_PORT = 8000  # OpenAI HTTP routes
CONTROL_PORT = 9001  # gRPC Control, authenticated; for the operator only
OPS_PORT = 8080  # plaintext HTTP: /livez /readyz /metrics

# Environment of a runtime container; the command line covers everything else.
ENV_CONTROL_TOKEN_FILE = "SHIFT_CONTROL_TOKEN_FILE"  # path of the bearer token that Control expects
ENV_CONTROL_TLS_FOLDER = "SHIFT_CONTROL_TLS_FOLDER"  # folder with the three files below; Control then asks for mTLS
ENV_TERMINATION_LOG = "SHIFT_TERMINATION_LOG"  # where a failed start-up leaves {"reason", "message"}
ENV_POD_NAME = "SHIFT_POD_NAME"

# Keys inside the control Secret.
CONTROL_TOKEN_KEY = "token"
CONTROL_TLS_CERTIFICATE = "tls.crt"
CONTROL_TLS_KEY = "tls.key"
CONTROL_TLS_AUTHORITIES = "ca.crt"  # PEM bundle; both ends trust these
CONTROL_TLS_NAME = "control.shiftparallel.internal"  # in the certificate of every pod, whatever its address
AUTHORIZATION_METADATA = "authorization"  # gRPC metadata: "Bearer <token>"
TERMINATION_LOG_PATH = "/dev/termination-log"

# Labels and annotations.
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_DEPLOYMENT = f"{API_GROUP}/deployment"
ANNOTATION_TEMPLATE_HASH = f"{API_GROUP}/template-hash"
# On a ShiftDeployment: an authority of its control channel made before this time (RFC 3339) is replaced.
ANNOTATION_ROTATE = f"{API_GROUP}/rotate-control-certificates"
# On a pod that is to leave at a scale-in: {"from", "since", "reason", "message"}.
ANNOTATION_RETIRING = f"{API_GROUP}/retiring"
# Of Kubernetes: a ReplicaSet takes away the ready pod with the lowest cost first.
ANNOTATION_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
MANAGED_BY = "shift-operator"
FIELD_MANAGER = "shift-operator"
RUNTIME_NAME = "shift-runtime"

# Condition types of a ShiftDeployment.
CONDITION_READY = "Ready"
CONDITION_AVAILABLE = "Available"
CONDITION_PROGRESSING = "Progressing"
CONDITION_SCHEDULED = "Scheduled"
CONDITION_MODEL_LOADED = "ModelLoaded"
CONDITION_SHIFT_VERIFIED = "ShiftVerified"
CONDITION_POLICY_IN_SYNC = "PolicyInSync"
CONDITION_SCALING_ACTIVE = "ScalingActive"
CONDITION_SLO_MET = "SLOMet"
CONDITION_DEGRADED = "Degraded"
CONDITION_PAUSED = "Paused"
CONDITIONS = (
    CONDITION_READY,
    CONDITION_AVAILABLE,
    CONDITION_PROGRESSING,
    CONDITION_SCHEDULED,
    CONDITION_MODEL_LOADED,
    CONDITION_SHIFT_VERIFIED,
    CONDITION_POLICY_IN_SYNC,
    CONDITION_SCALING_ACTIVE,
    CONDITION_SLO_MET,
    CONDITION_DEGRADED,
    CONDITION_PAUSED,
)

# Phases of start-up, as GetState and the runtime's metrics name them, in this order.
PHASE_FETCH = "fetch"
PHASE_RANKS = "ranks"
PHASE_VERIFY = "verify"
PHASE_OPEN = "open"
PHASE_LOAD = "load"
PHASE_KV = "kv"
PHASE_WARM = "warm"
PHASE_CALIBRATE = "calibrate"
PHASE_SELF_CHECK = "self-check"
PHASES = (
    PHASE_FETCH,
    PHASE_RANKS,
    PHASE_VERIFY,
    PHASE_OPEN,
    PHASE_LOAD,
    PHASE_KV,
    PHASE_WARM,
    PHASE_CALIBRATE,
    PHASE_SELF_CHECK,
)

# Reasons with which a runtime refuses to start; the operator shows them in Ready.
REASON_INVALID_LAYOUT = "InvalidLayout"  # heads, FFN or vocabulary do not divide over the ranks
REASON_MODEL_NOT_FOUND = "ModelNotFound"
REASON_FETCH_FAILED = "FetchFailed"  # hub or bucket cannot be reached, no room, a wrong region or clock
REASON_MODEL_DAMAGED = "ModelDamaged"
REASON_MODEL_UNSUPPORTED = "ModelUnsupported"
REASON_OUT_OF_MEMORY = "OutOfMemory"
REASON_INVALID_ARGUMENT = "InvalidArgument"
REASON_SELF_CHECK_FAILED = "SelfCheckFailed"
REASON_RANK_FAILED = "RankFailed"
REASON_START_TIMEOUT = "StartTimeout"
REASON_INTERNAL = "InternalError"

# Reasons of refused calls: in the trailing metadata of a gRPC error.
METADATA_REASON = "shift-reason"
# Trailing metadata of a stream that ended well.
METADATA_GEAR_SHARE = "shift-gear-share"  # GEAR=SHARE,… of the tokens computed; shares sum to 1
METADATA_QUEUE_MS = "shift-queue-ms"
METADATA_TTFT_MS = "shift-ttft-ms"
METADATA_CACHED_TOKENS = "shift-cached-tokens"
METADATA_TRACEPARENT = "traceparent"  # W3C trace context: accepted, and sent back with the initial metadata
REFUSED_QUEUE_FULL = "QueueFull"
REFUSED_DRAINING = "Draining"
REFUSED_DUPLICATE_REQUEST = "DuplicateRequest"
REFUSED_INVALID_REQUEST = "InvalidRequest"
REFUSED_STALE_GENERATION = "StaleGeneration"
REFUSED_INVALID_POLICY = "InvalidPolicy"
REFUSED_BUSY = "Busy"
REFUSED_STARTING = "Starting"
REFUSED_UNAUTHENTICATED = "Unauthenticated"
REFUSED_ABORTED = "Aborted"
REFUSED_DEADLINE = "DeadlineExceeded"
REFUSED_WAITED_TOO_LONG = "WaitedTooLong"  # for its first token
REFUSED_UNSUPPORTED = "Unsupported"  # a feature that this version does not have

# Bounds that the CRD, the command line and the wire check alike.
MIN_THRESHOLD_TOKENS = 1
MAX_THRESHOLD_TOKENS = 1_048_576
DEFAULT_THRESHOLD_TOKENS = 256
MAX_GPUS = 64
# How long a pod that ends lets its requests run.
MAX_DRAIN_SECONDS = 3600
DEFAULT_DRAIN_SECONDS = 30

# Share of the free memory that the KV cache may take.
MIN_KV_MEMORY_PERCENT = 10
MAX_KV_MEMORY_PERCENT = 95

# Metric names. Runtime:
METRIC_STEPS = "shift_steps_total"  # gear
METRIC_STEP_TOKENS = "shift_step_tokens_total"  # gear
METRIC_STEP_SECONDS = "shift_step_seconds"  # gear
METRIC_SHIFTS = "shift_shifts_total"
METRIC_REQUESTS = "shift_requests_total"  # outcome
METRIC_RUNNING = "shift_running_requests"
METRIC_WAITING = "shift_waiting_requests"
METRIC_KV_FREE = "shift_kv_blocks_free"
METRIC_KV_CACHED = "shift_kv_blocks_cached"
METRIC_PREFIX_QUERIED = "shift_prefix_queried_tokens_total"
METRIC_PREFIX_HIT = "shift_prefix_hit_tokens_total"
METRIC_PREEMPTIONS = "shift_preemptions_total"
METRIC_KV_TOTAL = "shift_kv_blocks_total"
METRIC_TTFT = "shift_ttft_seconds"
METRIC_TPOT = "shift_tpot_seconds"
METRIC_REFUSAL_SECONDS = "shift_refusal_seconds"  # outcome
METRIC_POLICY_GENERATION = "shift_policy_generation"  # state: accepted, applied
METRIC_STARTUP_SECONDS = "shift_startup_phase_seconds"  # phase
# Operator:
METRIC_RECONCILES = "shift_operator_reconciles_total"  # outcome
METRIC_RECONCILE_SECONDS = "shift_operator_reconcile_seconds"
METRIC_POLICY_PUSH_SECONDS = "shift_operator_policy_push_seconds"
METRIC_LEADER = "shift_operator_leader"
METRIC_SCALE_DECISIONS = "shift_operator_scale_decisions_total"  # decision, reason
# Of each ShiftDeployment, labelled namespace and name: what moves with the load and is therefore not in its status.
METRIC_CONDITION = "shift_operator_condition"  # condition; 1 True, 0 False, -1 Unknown
METRIC_PODS = "shift_operator_pods"  # state: asked, live, ready
METRIC_CAPACITY = "shift_operator_capacity_tokens_per_second"  # gear; of all ready pods
METRIC_DEMAND = "shift_operator_demand_tokens_per_second"  # prompts that arrive and output that is made
METRIC_DEPLOYMENT_RUNNING = "shift_operator_running_requests"
METRIC_DEPLOYMENT_WAITING = "shift_operator_waiting_requests"
METRIC_OLDEST_WAIT = "shift_operator_oldest_wait_seconds"
METRIC_TTFT_P95 = "shift_operator_ttft_p95_seconds"  # of the slowest pod, over the last minute
METRIC_TPOT_P95 = "shift_operator_tpot_p95_seconds"
METRIC_SET_GENERATION = "shift_operator_policy_generation"
