"""Which tokens may come next so that the text stays in a grammar.

The automata are llguidance's (MIT, Rust, no dependencies; ADR 6): it takes a vocabulary as bytes per id, answers with
one bit per id in tens of microseconds, and bounds its work by counts, so that neither a schema nor a step takes long.
Nothing here loads torch or transformers: masks are made in the engine process and travel to the ranks as bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from shiftruntime.engine.messages import MAX_GRAMMAR_BYTES, Grammar
from shiftruntime.models.tokenizer import Tokenizer

_ANY_OBJECT = '{"type": "object"}'
# What a matcher may cost at most: about 20 ms to compile a lexer, 15 ms for a mask, 20 MB of lexer states.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, step_max_items=50_000, max_lexer_states=20_000,
    max_grammar_size=200_000, verbose_errors=False,
)  # fmt: skip


class GrammarError(ValueError):
    """A grammar that cannot be used, or that broke a limit while it was; the message has the reason."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as grammars see it. ``size``: ids that the model has logits for, perhaps more than the tokenizer."""

    tokenizer: Tokenizer
    size: int

    @cached_property
    def tokens(self) -> list[bytes]:
        """Bytes of every id; special and unused ids have none, and no grammar allows them."""
        return [self.tokenizer.bytes_of(token) for token in range(self.size)]

    @cached_property
    def automaton(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Encoder(self)), n_vocab=self.size + 1)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The lowest id of every string of bytes."""
        return {data: token for token, data in reversed(list(enumerate(self.tokens))) if data}

    @cached_property
    def speakable(self) -> int:
        """Bits of the ids that stand for text."""
        return int.from_bytes(pack(token for token, data in enumerate(self.tokens) if data), "little")


class Matcher:
    """The state of one request's text. Made by ``compile_grammar`` and by ``fresh``."""

    def __init__(self, vocabulary: Vocabulary, automaton: LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._automaton = automaton

    def fresh(self) -> Matcher:
        """A copy in the state of this one; cheap, the compiled parts are shared."""
        return Matcher(self._vocabulary, self._automaton.deep_copy())

    def accept(self, token: int) -> None:
        """The text goes on with this token; raises GrammarError if the grammar does not allow it."""
        if not self._automaton.consume_token(token):
            text = f"token {token} ({self._vocabulary.tokens[token]!r})"
            raise GrammarError(f"{text} leaves the grammar: {self._automaton.get_error()}")

    def allowed(self, stop_token_ids: tuple[int, ...], may_stop: bool) -> bytes:
        """One bit per id, lowest bit first; stop ids once the text is complete, even before it ``may_stop`` if nothing
        else is left. Raises GrammarError when the work exceeds its limits."""
        bits = int.from_bytes(self._automaton.compute_bitmask(), "little") & self._vocabulary.speakable
        if self._automaton.is_error():
            raise GrammarError(f"the grammar cannot be followed any further: {self._automaton.get_error()}")
        stops = int.from_bytes(pack(i for i in stop_token_ids if i < self._vocabulary.size), "little")
        if self._automaton.is_accepting():
            bits = bits | stops if may_stop or not bits & ~stops else bits & ~stops
        elif not may_stop:
            bits = bits & ~stops or bits
        if not bits:
            raise GrammarError("no token of this model can go on in the grammar")
        return bits.to_bytes(-(-self._vocabulary.size // 8), "little")


def compile_grammar(grammar: Grammar, vocabulary: Vocabulary) -> Matcher:
    """Raises GrammarError with what is wrong in the schema or the expression."""
    check_size(grammar)
    if grammar.kind == "regex":
        source = LLMatcher.grammar_from_regex(grammar.text)
    else:
        source = _json_grammar(grammar.text if grammar.kind == "json_schema" else _ANY_OBJECT)
    automaton = LLMatcher(vocabulary.automaton, source, log_level=0, limits=_LIMITS)
    if automaton.is_error():
        raise GrammarError(f"the {grammar.kind} cannot be compiled: {_first_lines(automaton.get_error())}")
    return Matcher(vocabulary, automaton)


def check_size(grammar: Grammar) -> None:
    """Raises GrammarError; cheap enough for the step loop."""
    size = len(grammar.text.encode("utf-8", "surrogatepass"))
    limit = MAX_GRAMMAR_BYTES[grammar.kind]
    if size > limit:
        raise GrammarError(f"the {grammar.kind} has {size} bytes; at most {limit} are allowed")


def pack(token_ids: Iterable[int]) -> bytes:
    """Ids as bits, lowest bit first."""
    bits = bytearray()
    for token in token_ids:
        if token // 8 >= len(bits):
            bits.extend(bytes(token // 8 + 1 - len(bits)))
        bits[token // 8] |= 1 << token % 8
    return bytes(bits)


def _json_grammar(text: str) -> str:
    try:
        schema = json.loads(text)
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the json_schema is no JSON that can be read: {error}") from error


def _first_lines(error: str, lines: int = 4, characters: int = 300) -> str:
    return " ".join(line.strip() for line in error.splitlines()[:lines])[:characters]


class _Encoder:
    """What llguidance asks of a tokenizer. It encodes text that a grammar forces, so that forced text comes in the
    tokens that the model knows it by."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._longest = max(map(len, vocabulary.tokens), default=1)
        # llguidance wants one end-of-text id. It gets one that no model has: each request has stop ids of its own.
        self.eos_token_id = vocabulary.size
        self.bos_token_id = None
        self.tokens = [*vocabulary.tokens, b""]
        self.special_token_ids = [i for i, data in enumerate(self.tokens) if not data]

    def __call__(self, text: bytes) -> list[int]:
        """Ids whose bytes are exactly ``text``."""
        try:
            ids = self._vocabulary.tokenizer.encode(text.decode(), add_bos=False)
        except UnicodeDecodeError:
            ids = []
        tokens = self._vocabulary.tokens
        if all(i < len(tokens) for i in ids) and b"".join(tokens[i] for i in ids) == text:
            return ids
        return self._longest_match(text)  # some tokenizers put a space in front, or drop what they do not know

    def _longest_match(self, text: bytes) -> list[int]:
        ids: list[int] = []
        while text:
            fitting = (text[:n] for n in range(min(self._longest, len(text)), 0, -1))
            token = next((self._vocabulary.ids[piece] for piece in fitting if piece in self._vocabulary.ids), None)
            if token is None:
                break  # a byte that this vocabulary cannot say
            ids.append(token)
            text = text[len(self.tokens[token]) :]
        return ids
