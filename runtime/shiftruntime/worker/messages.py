"""What the engine and a rank say to each other."""

from __future__ import annotations

import msgspec

from shiftruntime.config import ModelConfig
from shiftruntime.models.sample import Likeliest as Likeliest
from shiftruntime.models.sample import Penalties as Penalties
from shiftruntime.models.sample import Sample as Sample

# Per rank; more, for the log probabilities of a long prompt, are made piece by piece.
LOGITS_AT_ONCE = 1 << 24

# --- engine -> rank ------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True, tag=True):
    """Rank 0 only: read the model's header and choose the dtype. Answer: Opened."""

    model: str
    dtype: str  # "auto" or a torch dtype
    exact: bool
    quantisation: str = "auto"  # as the checkpoint has it


class Load(msgspec.Struct, frozen=True, tag=True):
    """Rank 0 only, after Open: fill the weight memory. Answers: LoadProgress …, Loaded."""

    weights_bytes: int


class Attach(msgspec.Struct, frozen=True, tag=True):
    """Map the weights and build the decoder's parts. Answer: Attached."""

    config: ModelConfig
    dtype: str
    exact: bool
    weights_bytes: int
    block_size: int
    kv_dtype: str = "auto"  # as the model is computed


class AllocateKv(msgspec.Struct, frozen=True, tag=True):
    """(Re)allocate the KV cache. Answer: Allocated."""

    num_blocks: int


UNKNOWN = (0,)  # tokens of a chunk whose one token the engine does not know yet


class ChunkPlan(msgspec.Struct, frozen=True):
    """Tokens of one sequence in this step; ``start`` tokens of it are in the cache already."""

    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]  # of the first layer group; negative: behind the window, given back
    sample: Sample | None = None
    targets: tuple[int, ...] = ()  # of the first tokens: report the log probability of this continuation
    other_blocks: tuple[tuple[int, ...], ...] = ()  # as ``blocks``, of the model's further layer groups
    drawn: int | None = None  # its token is the one that the step before drew at this place, and ``tokens`` is UNKNOWN


class StepPlan(msgspec.Struct, frozen=True, tag=True):
    """One step, the same on every rank; without chunks only the policy generation applies. Answer: Done."""

    step: int
    gear: str
    generation: int
    chunks: tuple[ChunkPlan, ...] = ()


# A rank ends when the engine closes its side of the channel.
ToRank = Open | Load | Attach | AllocateKv | StepPlan

# --- rank -> engine ------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag=True):
    rank: int


class Opened(msgspec.Struct, frozen=True, tag=True):
    config: ModelConfig
    dtype: str
    weights_bytes: int


class LoadProgress(msgspec.Struct, frozen=True, tag=True):
    done_bytes: int
    total_bytes: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    pass


class Attached(msgspec.Struct, frozen=True, tag=True):
    kv_block_bytes: int


class Allocated(msgspec.Struct, frozen=True, tag=True):
    pass


class Done(msgspec.Struct, frozen=True, tag=True):
    """Every rank reports the sampled tokens: they must be equal, and the engine checks it."""

    step: int
    generation: int
    tokens: tuple[int, ...] = ()  # of the chunks that sample, in plan order
    logprobs: tuple[float, ...] = ()
    target_logprobs: tuple[float, ...] = ()  # of all targets, in plan order
    likeliest: tuple[Likeliest, ...] = ()  # like tokens, when a chunk wants some


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The rank gives up; its process ends after this."""

    reason: str
    message: str


FromRank = Hello | Opened | LoadProgress | Loaded | Attached | Allocated | Done | Failed
