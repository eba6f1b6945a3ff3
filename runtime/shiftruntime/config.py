"""What the runtime knows about a model before it touches a weight. No torch here: the frontend reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shiftcore.layer_groups import LayerGroup, group_layers
from shiftcore.layout import HeadLayout, LayoutError, padded_vocabulary, shard

from shiftruntime.errors import invalid_layout, model_unsupported

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class RopeScaling:
    """How the inverse frequencies are stretched for long contexts."""

    kind: Literal["linear", "llama3", "yarn", "factors"]
    factor: float
    low_freq_factor: float = 1.0  # llama3 only, as the next
    high_freq_factor: float = 4.0
    original_max_position: int = 8192  # llama3 and yarn
    beta_fast: float = (
        32.0  # yarn only, as the next three: turns in the original context above which nothing is stretched
    )
    beta_slow: float = 1.0  # turns below which everything is
    truncate: bool = True  # the ends of the blend are whole dimensions
    attention_factor: float = 1.0  # on cos and sin
    factors: tuple[float, ...] = ()  # factors only: what divides each frequency, [head_dim / 2]

    def __post_init__(self) -> None:
        positive = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position", "beta_fast", "beta_slow",
                    "attention_factor")  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise model_unsupported(f"RoPE scaling {self.kind}: {name} is {getattr(self, name)}, must be positive")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise model_unsupported(
                f"RoPE scaling llama3: low_freq_factor {self.low_freq_factor} is not below "
                f"high_freq_factor {self.high_freq_factor}"
            )


@dataclass(frozen=True)
class Experts:
    """The sparse layers of a mixture of experts: a router sends each token to a few of many small FFNs."""

    count: int
    per_token: int
    intermediate_size: int  # of one expert
    sparse_layers: tuple[bool, ...]  # per layer; the others have one dense FFN
    normalised: bool = True  # a token's weights are scaled to the sum 1

    def __post_init__(self) -> None:
        if self.intermediate_size < 1:
            raise model_unsupported(f"experts of intermediate size {self.intermediate_size}; it must be positive")
        if not 1 <= self.per_token <= self.count:
            raise model_unsupported(f"{self.per_token} experts per token, but there are {self.count} experts")


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only model; families differ only in these values. Refuses at birth what no family can mean."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float  # of layers with full attention
    rope_scaling: RopeScaling | None = None  # of layers with full attention
    rope_theta_local: float | None = None  # of sliding layers; None: they turn as the others
    rope_scaling_local: RopeScaling | None = None  # of sliding layers, if they have a theta of their own
    sliding_window: int | None = None  # tokens a sliding layer sees, its own included
    sliding_layers: tuple[bool, ...] = ()  # per layer; empty: none slides
    attention_scale: float | None = None  # factor on q·k; None: head_dim ** -0.5
    attention_soft_cap: float | None = None  # scores s become cap * tanh(s / cap)
    logit_soft_cap: float | None = None
    qk_norm: bool = False
    post_norms: bool = False  # Gemma: norms after attention and after the FFN, before the residual
    norm_offset: float = 0.0  # what to add to stored norm weights: 1 for Gemma safetensors, 0 for its GGUF
    activation: Activation = "silu"
    embedding_multiplier: float = 1.0
    tie_embeddings: bool = False
    attention_bias: bool = False  # of q, k and v
    output_bias: bool = False  # of the projection after attention
    mlp_bias: bool = False
    experts: Experts | None = None  # None: every layer is dense
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_query_heads", "num_kv_heads", "head_dim", "intermediate_size",
                     "vocab_size", "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) < 1:
                raise model_unsupported(f"{self.architecture}: {name} is {getattr(self, name)}, it must be positive")
        if self.head_dim % 2:
            raise model_unsupported(f"{self.architecture}: head_dim {self.head_dim} is odd, RoPE needs pairs")
        if self.sliding_layers and len(self.sliding_layers) != self.num_layers:
            raise model_unsupported(
                f"{self.architecture}: {len(self.sliding_layers)} layer types for {self.num_layers} layers"
            )
        if self.experts is not None and len(self.experts.sparse_layers) != self.num_layers:
            raise model_unsupported(
                f"{self.architecture}: {len(self.experts.sparse_layers)} sparse or dense layers for {self.num_layers}"
            )
        for name in ("attention_soft_cap", "logit_soft_cap"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise model_unsupported(f"{self.architecture}: {name} is {getattr(self, name)}, it must be positive")
        if any(self.sliding_layers) and not self.sliding_window:
            raise model_unsupported(f"{self.architecture}: sliding layers without a sliding_window")

    @property
    def scale(self) -> float:
        """Factor on q·k."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def slides(self, layer: int) -> bool:
        return bool(self.sliding_layers) and self.sliding_layers[layer]

    def window(self, layer: int) -> int | None:
        """Tokens that a query of this layer sees, its own included; None: all."""
        return self.sliding_window if self.slides(layer) else None

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Which layers share the blocks of the KV cache."""
        return group_layers([self.window(layer) for layer in range(self.num_layers)])

    @property
    def group_windows(self) -> tuple[int | None, ...]:
        """The attention window of each layer group."""
        return tuple(group.window for group in self.layer_groups)

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer has experts instead of one FFN."""
        return self.experts is not None and self.experts.sparse_layers[layer]

    @property
    def has_dense_layers(self) -> bool:
        return self.experts is None or not all(self.experts.sparse_layers)

    def heads(self, ranks: int) -> HeadLayout:
        """Raises StartupError(InvalidLayout)."""
        try:
            return HeadLayout(self.num_query_heads, self.num_kv_heads, ranks)
        except LayoutError as error:
            raise invalid_layout(f"{self.architecture} over {ranks} ranks: {error}") from error

    def padded_vocab(self, ranks: int) -> int:
        return padded_vocabulary(self.vocab_size, ranks)

    def check_layout(self, ranks: int) -> None:
        """Raises StartupError(InvalidLayout) with the numbers if the model does not divide over the ranks.

        Experts always do: each lies whole on one rank, and with fewer experts than ranks some ranks own none.
        """
        self.heads(ranks)
        if not self.has_dense_layers:
            return
        try:
            shard(self.intermediate_size, ranks, 0, "intermediate_size (FFN)")
        except LayoutError as error:
            raise invalid_layout(f"{self.architecture} over {ranks} ranks: {error}") from error
