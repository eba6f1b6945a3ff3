"""Masks of grammars: whatever a model draws under them parses, validates and matches."""

from __future__ import annotations

import contextlib
import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from helpers.tiny_models import save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from shiftruntime.engine.grammar import (
    GrammarError,
    Matcher,
    Vocabulary,
    compile_grammar,
    pack,
)
from shiftruntime.engine.messages import MAX_GRAMMAR_BYTES, Grammar
from shiftruntime.models.tokenizer import load_tokenizer

EOS = 1
STOPS = (EOS,)
SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -5, "maximum": 300},
    {"enum": ["red", "green", 7, None]},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {}, "additionalProperties": False}]},
    {"$ref": "#/$defs/n", "$defs": {"n": {"type": "number", "minimum": 0, "maximum": 9}}},
]
REGEXES = [r"[a-z]{3,8}@x\.(com|org)", r"^(yes|no)$", r"\d{4}-\d\d-\d\d", r"(ab|ba){0,5}", r"[^a]b?"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Vocabulary(load_tokenizer(folder), size=136)  # the model has logits for more ids than there are tokens


def ids(bits: bytes) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist()


def walk(matcher: Matcher, vocabulary: Vocabulary, rng: random.Random, most: int = 400) -> tuple[str, bool]:
    """Text of random allowed tokens, and whether a stop token ended it."""
    text = b""
    for _ in range(most):
        allowed = ids(matcher.allowed(STOPS, may_stop=True))
        assert all(i in STOPS or vocabulary.tokens[i] for i in allowed)
        # Stop soon where that is allowed, else a random model makes endless white space.
        token = EOS if EOS in allowed and rng.random() < 0.3 else rng.choice(allowed)
        if token == EOS:
            return text.decode(), True
        matcher.accept(token)
        text += vocabulary.tokens[token]
    return text.decode(), False


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
def test_random_walks_through_a_schema_validate(schema: dict[str, Any], vocabulary: Vocabulary) -> None:
    compiled, rng = compile_grammar(Grammar("json_schema", json.dumps(schema)), vocabulary), random.Random(0)
    ended = 0
    for _ in range(25):
        text, complete = walk(compiled.fresh(), vocabulary, rng)
        if complete:
            jsonschema.validate(json.loads(text), schema)
            ended += 1
    assert ended >= 5


def test_json_object_is_any_object(vocabulary: Vocabulary) -> None:
    compiled, rng = compile_grammar(Grammar("json_object", ""), vocabulary), random.Random(1)
    values = [
        json.loads(text) for text, complete in (walk(compiled.fresh(), vocabulary, rng) for _ in range(40)) if complete
    ]
    assert {type(value) for value in values} == {dict}


@pytest.mark.parametrize("expression", REGEXES)
def test_random_walks_through_an_expression_match(expression: str, vocabulary: Vocabulary) -> None:
    compiled, rng = compile_grammar(Grammar("regex", expression), vocabulary), random.Random(2)
    for _ in range(20):
        text, complete = walk(compiled.fresh(), vocabulary, rng)
        assert complete
        assert re.fullmatch(expression, text)


def test_a_complete_text_may_only_stop(vocabulary: Vocabulary) -> None:
    matcher = compile_grammar(Grammar("regex", "ab"), vocabulary).fresh()
    for letter in (b"a", b"b"):
        matcher.accept(vocabulary.ids[letter])
    assert ids(matcher.allowed((EOS, 40), may_stop=True)) == [EOS, 40]
    assert ids(matcher.allowed((EOS,), may_stop=False)) == [EOS], "min_tokens must leave something to say"


def test_stopping_waits_for_min_tokens_where_the_grammar_can_go_on(vocabulary: Vocabulary) -> None:
    matcher = compile_grammar(Grammar("regex", "a*"), vocabulary).fresh()
    assert EOS in ids(matcher.allowed(STOPS, may_stop=True))
    assert ids(matcher.allowed(STOPS, may_stop=False)) == [vocabulary.ids[b"a"]]


def test_a_token_outside_the_grammar_is_an_error(vocabulary: Vocabulary) -> None:
    matcher = compile_grammar(Grammar("regex", "ab"), vocabulary).fresh()
    with pytest.raises(GrammarError, match="leaves the grammar"):
        matcher.accept(vocabulary.ids[b"b"])


def test_copies_go_their_own_ways(vocabulary: Vocabulary) -> None:
    compiled = compile_grammar(Grammar("regex", "a|b"), vocabulary)
    first, second = compiled.fresh(), compiled.fresh()
    first.accept(vocabulary.ids[b"a"])
    assert ids(first.allowed(STOPS, may_stop=True)) == [EOS]
    assert ids(second.allowed(STOPS, may_stop=True)) == sorted(vocabulary.ids[x] for x in (b"a", b"b"))


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("json_schema", "{", "no JSON"),
        ("json_schema", "[1]", "object or boolean"),
        ("json_schema", '{"type": "foo"}', "foo"),
        ("json_schema", '{"$ref": "http://example.com/schema"}', "example.com"),
        ("json_schema", "[" * 3000, "JSON"),
        ("json_schema", '"' + "x" * MAX_GRAMMAR_BYTES["json_schema"] + '"', "at most"),
        ("regex", "(a", "unclosed"),
        ("regex", "a" * (MAX_GRAMMAR_BYTES["regex"] + 1), "at most"),
        ("regex", r"(?=a)b", "look-around"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(
    kind: Any, text: str, said: str, vocabulary: Vocabulary
) -> None:
    with pytest.raises(GrammarError, match=re.escape(said)):
        compile_grammar(Grammar(kind, text), vocabulary)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "expression", [r"(.*a.{60}){20}", r"(a{1,500}){1,500}b", r"((a|b|c|d){0,200}x){0,200}", r"(\w+\s*){50}!"]
)
def test_a_hostile_expression_is_bounded(expression: str, vocabulary: Vocabulary) -> None:
    """Whether it is refused or followed, it takes no long time and breaks with a reason at worst."""
    with contextlib.suppress(GrammarError):
        walk(compile_grammar(Grammar("regex", expression), vocabulary).fresh(), vocabulary, random.Random(3), 60)


LEAVES: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": "integer", "minimum": 0, "maximum": 99},
    {"enum": ["x", 1]},
]


def array_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": 2}


def object_of(properties: dict[str, Any]) -> dict[str, Any]:
    required = sorted(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    return st.one_of(inner.map(array_of), properties.map(object_of))


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.sampled_from(LEAVES), nested, max_leaves=5), st.integers(0, 2**32))
def test_any_schema_is_kept(vocabulary: Vocabulary, schema: dict[str, Any], seed: int) -> None:
    compiled = compile_grammar(Grammar("json_schema", json.dumps(schema)), vocabulary)
    text, complete = walk(compiled.fresh(), vocabulary, random.Random(seed))
    if complete:
        jsonschema.validate(json.loads(text), schema)


@given(st.sets(st.integers(0, 4000)))
def test_packed_bits_are_the_ids(chosen: set[int]) -> None:
    assert ids(pack(chosen)) == sorted(chosen)
