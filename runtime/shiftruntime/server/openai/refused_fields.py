"""Fields of requests that would change the answer and are not supported, and the older names of those that are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shiftruntime.server.openai.errors import invalid

# Name → what to do instead. Fields without effect on the answer are not here: they are ignored, and logged once.
REFUSED = {
    "suffix": "filling in before a suffix is not supported; leave it out",
    "echo": "chats have no echo; leave it out, or use /v1/completions",
    "functions": "functions were replaced by tools; use tools",
    "function_call": "function_call was replaced by tool_choice; use tool_choice",
    "tools": "completions have no tools; use /v1/chat/completions",
    "tool_choice": "completions have no tools; use /v1/chat/completions",
    "max_completion_tokens": "completions have max_tokens; use that",
    "top_logprobs": "completions have logprobs with a number; use that",
    "chat_template": "a template cannot be sent; start the server with --chat-template",
    "use_beam_search": "beam search is not supported; leave it out",
    "length_penalty": "beam search, and so length_penalty, is not supported; leave it out",
    "early_stopping": "beam search, and so early_stopping, is not supported; leave it out",
    "documents": "documents for the chat template are not supported; put them into a message",
    "web_search_options": "web search is not supported; leave it out",
    "allowed_token_ids": "allowed_token_ids is not supported; use logit_bias or structured_outputs",
    "bad_words": "bad_words is not supported; use logit_bias",
    "truncate_prompt_tokens": "truncate_prompt_tokens is not supported; send a shorter prompt",
    "prompt_logprobs": "prompt_logprobs is not supported; use echo with logprobs on /v1/completions, or the gRPC route",
    "prompt_embeds": "embedded prompts are not supported; send text or token ids",
    "logits_processors": "logits processors are code and are not run; use logit_bias or structured_outputs",
    "detokenize": "answers without text are not supported; leave it out, or use the gRPC route, which has the ids",
    "spaces_between_special_tokens": "special tokens are written without spaces between them; leave it out",
    "return_token_ids": "token ids are not in these answers; use the gRPC route, or /tokenize",
    "return_tokens_as_token_ids": "tokens are written as text; use the gRPC route for their ids",
    "reasoning_effort": "reasoning_effort is not supported; use chat_template_kwargs, if the model's template has one",
    "reasoning": "reasoning is not supported; use chat_template_kwargs, if the model's template has a switch",
    "thinking_token_budget": "a budget for thoughts is not supported; use max_tokens",
    "verbosity": "verbosity is not supported; ask for it in a message",
    "guided_grammar": "grammars are not supported; use structured_outputs with json, regex or choice",
    "guided_whitespace_pattern": "guided_whitespace_pattern is not supported; use a regex in structured_outputs",
    "structural_tag": "structural tags are not supported; use structured_outputs with json, regex or choice",
    "typical_p": "typical_p is not supported; use top_p or min_p",
    "top_a": "top_a is not supported; use min_p",
    "kv_transfer_params": "KV caches are not transferred between pods; leave it out",
    "vllm_xargs": "vllm_xargs is not supported; leave it out",
    "mm_processor_kwargs": "only text is supported; leave it out",
}
# Values that ask for what happens anyway; clients that write out every default send them.
_HARMLESS = {
    "detokenize": (True,),
    "spaces_between_special_tokens": (True,),
    "length_penalty": (1, 1.0),
    "typical_p": (1, 1.0),
    "tool_choice": ("none",),
}
# What vLLM called the fields of structured_outputs before.
GUIDED = {
    "guided_json": "json",
    "guided_json_object": "json_object",
    "guided_regex": "regex",
    "guided_choice": "choice",
}


def check_refused(fields: Mapping[str, Any]) -> None:
    """Raises HttpError for the first field that asks for what is not there."""
    for name, value in fields.items():
        if name in REFUSED and not _asks_nothing(name, value):
            raise invalid(f"{name}: {REFUSED[name]}", name, "Unsupported")


def fold_guided(fields: dict[str, Any]) -> None:
    """Older names of structured output become the newer ones; raises HttpError when both are given."""
    given = {name: fields.pop(name) for name in GUIDED if name in fields}
    if not given:
        return
    if "structured_outputs" in fields:
        first = next(iter(given))
        raise invalid(f"{first} and structured_outputs exclude each other; give one of them", first)
    fields["structured_outputs"] = {GUIDED[name]: value for name, value in given.items()}


def _asks_nothing(name: str, value: Any) -> bool:
    """Also what other fields than these take for "no"; 0 is a number of something, and False is not."""
    if name in _HARMLESS:
        return any(type(value) is type(each) and value == each for each in _HARMLESS[name])
    return value is False or value in ("", [], {})
