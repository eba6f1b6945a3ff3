"""Log probabilities in the two forms of OpenAI: by token for chats, in columns for completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shiftruntime.server.frontend import Text
from shiftruntime.server.request import Delta

LOWEST = -9999.0  # what JSON gets for minus infinity, as others write it


def token_text(text: Text, token_id: int) -> str:
    """A token on its own. Part of a character is written as its bytes, so that different tokens stay different."""
    data = text.token_piece(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(text: Text, delta: Delta) -> dict[str, Any] | None:
    """``{"content": [...]}`` of a delta's tokens, or None when there are none."""
    if not delta.logprobs:
        return None
    content = []
    for position, (token_id, logprob) in enumerate(zip(delta.token_ids, delta.logprobs, strict=True)):
        top = delta.top_logprobs[position] if delta.top_logprobs else None
        others = zip(top.token_ids, top.logprobs, strict=True) if top else ()
        entry = _entry(text, token_id, logprob) | {"top_logprobs": [_entry(text, *other) for other in others]}
        content.append(entry)
    return {"content": content}


def _entry(text: Text, token_id: int, logprob: float) -> dict[str, Any]:
    data = text.token_piece(token_id)
    return {"token": token_text(text, token_id), "logprob": max(logprob, LOWEST), "bytes": list(data)}


@dataclass
class Columns:
    """The log probabilities of one choice of a completion, taken piece by piece."""

    text: Text
    scores: list[float] = field(default_factory=list)  # of prompt tokens 1 …: choice 0 brings them for all choices
    offset: int = 0  # characters of the tokens so far
    prompt: tuple[int, ...] = ()  # with echo
    told: int = 0  # tokens of the prompt that are in the columns

    def take(self, delta: Delta) -> dict[str, Any] | None:
        """The columns of a delta; with echo they begin with the prompt's, whose first token has none."""
        columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        self.scores.extend(delta.prompt_logprobs)
        if delta.prompt_token_ids:
            self.prompt = delta.prompt_token_ids
        # Siblings wait for the prompt of choice 0, so all scores are there when a completion begins.
        ready = len(self.prompt) if delta.logprobs or delta.finish is not None else len(self.scores) + 1
        self._add_prompt(columns, min(ready, len(self.prompt)))
        for position, logprob in enumerate(delta.logprobs):
            top = delta.top_logprobs[position] if delta.top_logprobs else None
            pairs = zip(top.token_ids, top.logprobs, strict=True) if top else ()
            others = {token_text(self.text, token_id): max(value, LOWEST) for token_id, value in pairs}
            self._add(columns, delta.token_ids[position], logprob, others or None)
        return columns if columns["tokens"] else None

    def _add_prompt(self, columns: dict[str, Any], end: int) -> None:
        for position in range(self.told, end):
            known = 1 <= position <= len(self.scores)
            self._add(columns, self.prompt[position], self.scores[position - 1] if known else None, None)
        self.told = max(self.told, end)

    def _add(self, columns: dict[str, Any], token_id: int, logprob: float | None, top: dict[str, float] | None) -> None:
        name = token_text(self.text, token_id)
        columns["tokens"].append(name)
        columns["token_logprobs"].append(None if logprob is None else max(logprob, LOWEST))
        columns["top_logprobs"].append(top)
        columns["text_offset"].append(self.offset)
        self.offset += len(name)


def joined(parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The columns (or contents) of all deltas as one."""
    if not parts:
        return None
    return {name: [item for part in parts for item in part[name]] for name in parts[0]}
