"""What this version does not have. Asking for it is refused by name and not ignored."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from shiftprotos import contract

from shiftruntime.server.refusal import Refusal

# Name of the feature → what to do instead.
UNSUPPORTED = {
    "lora": "LoRA adapters are not supported; merge the adapter into the model's weights",
    "speculation": "speculative decoding is not supported; leave it out, the text is the same without",
    "embeddings": "embeddings are not supported; use a server for embedding models",
    "vision": "images, audio and video are not supported; send text only",
}

# How clients of the field ask for them: request parameters, body fields, types of message parts.
FEATURE_OF = {
    "lora": "lora",
    "lora_name": "lora",
    "lora_path": "lora",
    "lora_request": "lora",
    "adapter_id": "lora",
    "speculative_tokens": "speculation",
    "num_speculative_tokens": "speculation",
    "speculative_model": "speculation",
    "speculative_config": "speculation",
    "draft_model": "speculation",
    "prediction": "speculation",
    "embedding": "embeddings",
    "embeddings": "embeddings",
    "pooling": "embeddings",
    "image": "vision",
    "images": "vision",
    "image_url": "vision",
    "input_image": "vision",
    "audio": "vision",
    "input_audio": "vision",
    "video": "vision",
    "video_url": "vision",
    "multi_modal_data": "vision",
}


def unsupported(feature: str, asked_by: str = "") -> Refusal:
    """The refusal for a feature of ``UNSUPPORTED``; ``asked_by`` is the field that asked for it."""
    by = f"{asked_by}: " if asked_by else ""
    return Refusal(grpc.StatusCode.UNIMPLEMENTED, contract.REFUSED_UNSUPPORTED, f"{by}{UNSUPPORTED[feature]}")


def check_supported(names: Iterable[str]) -> None:
    """Raises Refusal for the first name that asks for a feature that is not there."""
    for name in names:
        if name in FEATURE_OF:
            raise unsupported(FEATURE_OF[name], name)
