"""Canonical tensors of a decoder: their names and shapes follow from the configuration alone."""

from __future__ import annotations

from shiftruntime.config import ModelConfig


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape as a model file must have it (before the vocabulary is padded)."""
    H, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv, d = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (H,), "q": (q, H), "k": (kv, H), "v": (kv, H), "o": (H, q),
        "mlp_norm": (H,),
    }  # fmt: skip
    dense: dict[str, tuple[int, ...]] = {"gate": (F, H), "up": (F, H), "down": (H, F)}
    if config.attention_bias:
        layer |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if config.output_bias:
        layer |= {"o_bias": (H,)}
    if config.mlp_bias:
        dense |= {"gate_bias": (F,), "up_bias": (F,), "down_bias": (H,)}
    if config.qk_norm:
        layer |= {"q_norm": (d,), "k_norm": (d,)}
    if config.post_norms:
        layer |= {"post_attn_norm": (H,), "post_mlp_norm": (H,)}
    shapes: dict[str, tuple[int, ...]] = {"embed": (V, H), "final_norm": (H,)}
    if not config.tie_embeddings:
        shapes["lm_head"] = (V, H)
    for i in range(config.num_layers):
        fed = _expert_shapes(config) if config.is_sparse(i) else dense
        shapes |= {f"layers.{i}.{name}": shape for name, shape in (layer | fed).items()}
    return shapes


def _expert_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The router, and all experts of a layer as one tensor each, so that a rank's experts are a range of it."""
    assert config.experts is not None, "a sparse layer without experts"
    E, F, H = config.experts.count, config.experts.intermediate_size, config.hidden_size
    return {"router": (E, H), "expert_gate": (E, F, H), "expert_up": (E, F, H), "expert_down": (E, H, F)}
