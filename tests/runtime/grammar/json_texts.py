"""What tests of JSON schemas share: an automaton over single bytes, random texts of it, an independent validator."""

from __future__ import annotations

import json
import random
from decimal import Context, Decimal, localcontext
from typing import Any

import jsonschema
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from ramet.runtime.grammar.json_schema import translate
from ramet.runtime.grammar.translation import Translation

TOKENS = LLTokenizer("byte")
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
CLOSING = frozenset(b'"}],')


def matcher(translation: Translation) -> LLMatcher:
    """At the beginning of a translation's language; one token for each byte."""
    found = LLMatcher(TOKENS, '%llguidance {"no_forcing": true}\n' + translation.lark)
    assert not found.is_error(), found.get_error() + translation.lark
    return found


def accepts(start: LLMatcher, text: str) -> bool:
    """Whether a text is in the language."""
    octets, here = list(text.encode()), start.deep_copy()
    return bool(here.try_consume_tokens(octets) == len(octets) and here.is_accepting())


def schema_accepts(schema: Any, *texts: str, whitespace: Any = "fixed") -> list[bool]:
    """Whether texts are in the language of a schema; its shortest text must be."""
    translation = translate(json.dumps(schema), whitespace)
    start = matcher(translation)
    if translation.shortest is not None:
        assert accepts(start, translation.shortest.decode()), translation.shortest
        assert valid(json.dumps(schema), translation.shortest.decode())
        assert translation.longest is None or len(translation.shortest) <= translation.longest
    return [accepts(start, text) for text in texts]


def exact(text: str) -> Any:
    """A JSON value whose numbers are not rounded."""
    return json.loads(text, parse_float=Decimal)


def valid(schema: str, text: str) -> bool:
    """What `jsonschema` says of a text. Keys that occur twice are a mistake whatever it says."""
    json.loads(text, object_pairs_hook=lambda pairs: pairs)
    with localcontext(Context(prec=1000)):
        return bool(jsonschema.Draft202012Validator(exact(schema), format_checker=FORMATS).is_valid(exact(text)))


def walk(start: LLMatcher, seed: int, most: int = 1500) -> str | None:
    """A random text of the language that ends soon; None when it has not ended after `most` bytes."""
    here, draw, text = start.deep_copy(), random.Random(seed), bytearray()
    while len(text) < most:
        bits = np.unpackbits(np.frombuffer(here.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [int(i) for i in np.flatnonzero(bits[:256])]
        if here.is_accepting() and (not allowed or draw.random() < 0.5):
            return text.decode()
        assert allowed, f"a dead end after {bytes(text)!r}"
        closing = [one for one in allowed if one in CLOSING]
        eager = len(text) > 150 or draw.random() < 0.15
        token = draw.choice(closing if closing and eager else allowed)
        if not closing and eager and any(48 <= one < 58 for one in allowed) and draw.random() < 0.5:
            token = next(one for one in allowed if 48 <= one < 58)
        text.append(token)
        here.consume_token(token)
        assert not here.is_error(), here.get_error()
    return None
