from shiftprotos.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_MODE_UNSPECIFIED: _ClassVar[PolicyMode]
    POLICY_MODE_AUTO: _ClassVar[PolicyMode]
    POLICY_MODE_LATENCY: _ClassVar[PolicyMode]
    POLICY_MODE_THROUGHPUT: _ClassVar[PolicyMode]

class ThresholdSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THRESHOLD_SOURCE_UNSPECIFIED: _ClassVar[ThresholdSource]
    THRESHOLD_SOURCE_POLICY: _ClassVar[ThresholdSource]
    THRESHOLD_SOURCE_CALIBRATION: _ClassVar[ThresholdSource]
    THRESHOLD_SOURCE_DEFAULT: _ClassVar[ThresholdSource]
    THRESHOLD_SOURCE_PINNED: _ClassVar[ThresholdSource]
POLICY_MODE_UNSPECIFIED: PolicyMode
POLICY_MODE_AUTO: PolicyMode
POLICY_MODE_LATENCY: PolicyMode
POLICY_MODE_THROUGHPUT: PolicyMode
THRESHOLD_SOURCE_UNSPECIFIED: ThresholdSource
THRESHOLD_SOURCE_POLICY: ThresholdSource
THRESHOLD_SOURCE_CALIBRATION: ThresholdSource
THRESHOLD_SOURCE_DEFAULT: ThresholdSource
THRESHOLD_SOURCE_PINNED: ThresholdSource

class Policy(_message.Message):
    __slots__ = ("mode", "threshold_tokens", "generation", "gear", "min_threshold_tokens", "max_threshold_tokens")
    MODE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    GEAR_FIELD_NUMBER: _ClassVar[int]
    MIN_THRESHOLD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_THRESHOLD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    mode: PolicyMode
    threshold_tokens: int
    generation: int
    gear: str
    min_threshold_tokens: int
    max_threshold_tokens: int
    def __init__(self, mode: _Optional[_Union[PolicyMode, str]] = ..., threshold_tokens: _Optional[int] = ..., generation: _Optional[int] = ..., gear: _Optional[str] = ..., min_threshold_tokens: _Optional[int] = ..., max_threshold_tokens: _Optional[int] = ...) -> None: ...

class CostPoint(_message.Message):
    __slots__ = ("tokens", "median_seconds", "spread_seconds", "samples")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SPREAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    median_seconds: float
    spread_seconds: float
    samples: int
    def __init__(self, tokens: _Optional[int] = ..., median_seconds: _Optional[float] = ..., spread_seconds: _Optional[float] = ..., samples: _Optional[int] = ...) -> None: ...

class Gear(_message.Message):
    __slots__ = ("name", "sequence", "tensor", "allowed", "costs", "steps", "tokens", "busy_seconds", "capacity_tokens_per_second")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    name: str
    sequence: int
    tensor: int
    allowed: bool
    costs: _containers.RepeatedCompositeFieldContainer[CostPoint]
    steps: int
    tokens: int
    busy_seconds: float
    capacity_tokens_per_second: float
    def __init__(self, name: _Optional[str] = ..., sequence: _Optional[int] = ..., tensor: _Optional[int] = ..., allowed: _Optional[bool] = ..., costs: _Optional[_Iterable[_Union[CostPoint, _Mapping]]] = ..., steps: _Optional[int] = ..., tokens: _Optional[int] = ..., busy_seconds: _Optional[float] = ..., capacity_tokens_per_second: _Optional[float] = ...) -> None: ...

class Crossover(_message.Message):
    __slots__ = ("tokens", "reason", "message")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    reason: str
    message: str
    def __init__(self, tokens: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Phase(_message.Message):
    __slots__ = ("name", "seconds", "bytes", "done", "total_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    bytes: int
    done: bool
    total_bytes: int
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ..., bytes: _Optional[int] = ..., done: _Optional[bool] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class SelfCheck(_message.Message):
    __slots__ = ("passed", "max_logprob_difference", "tolerance", "gears", "message")
    PASSED_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGPROB_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    GEARS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    passed: bool
    max_logprob_difference: float
    tolerance: float
    gears: _containers.RepeatedScalarFieldContainer[str]
    message: str
    def __init__(self, passed: _Optional[bool] = ..., max_logprob_difference: _Optional[float] = ..., tolerance: _Optional[float] = ..., gears: _Optional[_Iterable[str]] = ..., message: _Optional[str] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStateResponse(_message.Message):
    __slots__ = ("ready", "draining", "policy", "generation_accepted", "generation_applied", "gears", "base_gear", "crossover", "threshold_tokens", "threshold_source", "shifts", "load", "phases", "self_check", "version", "ranks", "dtype")
    READY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_APPLIED_FIELD_NUMBER: _ClassVar[int]
    GEARS_FIELD_NUMBER: _ClassVar[int]
    BASE_GEAR_FIELD_NUMBER: _ClassVar[int]
    CROSSOVER_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_SOURCE_FIELD_NUMBER: _ClassVar[int]
    SHIFTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    SELF_CHECK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    draining: bool
    policy: Policy
    generation_accepted: int
    generation_applied: int
    gears: _containers.RepeatedCompositeFieldContainer[Gear]
    base_gear: str
    crossover: Crossover
    threshold_tokens: int
    threshold_source: ThresholdSource
    shifts: int
    load: _inference_pb2.Load
    phases: _containers.RepeatedCompositeFieldContainer[Phase]
    self_check: SelfCheck
    version: str
    ranks: int
    dtype: str
    def __init__(self, ready: _Optional[bool] = ..., draining: _Optional[bool] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., generation_accepted: _Optional[int] = ..., generation_applied: _Optional[int] = ..., gears: _Optional[_Iterable[_Union[Gear, _Mapping]]] = ..., base_gear: _Optional[str] = ..., crossover: _Optional[_Union[Crossover, _Mapping]] = ..., threshold_tokens: _Optional[int] = ..., threshold_source: _Optional[_Union[ThresholdSource, str]] = ..., shifts: _Optional[int] = ..., load: _Optional[_Union[_inference_pb2.Load, _Mapping]] = ..., phases: _Optional[_Iterable[_Union[Phase, _Mapping]]] = ..., self_check: _Optional[_Union[SelfCheck, _Mapping]] = ..., version: _Optional[str] = ..., ranks: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class SetPolicyResponse(_message.Message):
    __slots__ = ("generation_accepted", "generation_applied")
    GENERATION_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    GENERATION_APPLIED_FIELD_NUMBER: _ClassVar[int]
    generation_accepted: int
    generation_applied: int
    def __init__(self, generation_accepted: _Optional[int] = ..., generation_applied: _Optional[int] = ...) -> None: ...

class CalibrateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CalibrateResponse(_message.Message):
    __slots__ = ("gears", "crossover")
    GEARS_FIELD_NUMBER: _ClassVar[int]
    CROSSOVER_FIELD_NUMBER: _ClassVar[int]
    gears: _containers.RepeatedCompositeFieldContainer[Gear]
    crossover: Crossover
    def __init__(self, gears: _Optional[_Iterable[_Union[Gear, _Mapping]]] = ..., crossover: _Optional[_Union[Crossover, _Mapping]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("running_requests", "waiting_requests")
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    running_requests: int
    waiting_requests: int
    def __init__(self, running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ...) -> None: ...
