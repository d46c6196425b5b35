"""What masks cost along texts, one by one and by the batch.

In: a tokenizer, programs with texts that they accept. Out: microseconds of masks, cold and warm, and the slowest.

Cold is the first text that follows a program; warm is one that followed it before. Each is the median of some passes at
the same place of the same text (on as many fresh automata for cold ones), by the wall clock in one thread. Masks of a
step are those of a batch of sequences at different places of different programs, one after the other, as the engine
fills them while the forward of the step runs.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ramet.frontend import ir
from ramet.runtime.grammar.automaton import GrammarCache, LLAutomaton
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.grammar.compiler import Compiler
from ramet.runtime.text import Tokenizer

SAMPLE = Path(__file__).parents[2] / "tests" / "data" / "grammar" / "schemas.jsonl"
_KINDS: tuple[tuple[dict[str, Any], Any], ...] = (
    ({"type": "string"}, "some ordinary words, and some more of them"),
    ({"type": "integer"}, 1234),
    ({"type": "string", "maxLength": 24}, "no more than 24 letters"),
    ({"enum": ["small", "large"]}, "large"),
    ({"type": "number"}, 12.5),
)


@dataclass(frozen=True)
class Course:
    """A program and the tokens of a text of it."""

    name: str
    program: str
    tokens: tuple[int, ...]


def ordinary(tokenizer: Tokenizer, compiler: Compiler) -> list[Course]:
    """The valid texts of the sample's schemas, and one of 20 fields."""
    cases = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    found = [(one["id"], one["schema"], value) for one in cases for value in one["valid"]]
    fields = {f"field_{k}": _KINDS[k % len(_KINDS)] for k in range(20)}
    twenty = {"type": "object", "properties": {name: kind for name, (kind, _) in fields.items()}}
    twenty |= {"required": list(fields), "additionalProperties": False}
    found.append(("20 fields", twenty, {name: value for name, (_, value) in fields.items()}))
    courses = []
    for name, schema, value in found:
        program = compiler.compile(ir.JsonSchema(json.dumps(schema))).program
        courses.append(Course(name, program, tuple(tokenizer.encode(json.dumps(value, ensure_ascii=False)))))
    return courses


def along(grammars: GrammarCache, course: Course, row: np.ndarray[Any, np.dtype[np.uint32]]) -> list[float]:
    """Microseconds of the mask at each place, up to where the text leaves the program (its keys in another order)."""
    automaton = grammars.automaton(course.program)
    spent = []
    for token in course.tokens:
        start = time.perf_counter()
        automaton.mask(row)
        spent.append(1e6 * (time.perf_counter() - start))
        try:
            automaton.advance((token,))
        except GrammarError:
            break
    return spent


def masks(tokenizer: Tokenizer, courses: Sequence[Course], turns: int = 3) -> dict[str, Any]:
    """Quantiles, cold and warm, and where the slowest warm one is."""
    programs = dict.fromkeys(course.program for course in courses)
    first = [next(c for c in courses if c.program == program) for program in programs]
    colds, warms = list[list[list[float]]](), list[list[list[float]]]()
    for _ in range(turns):
        grammars, row = _fresh(tokenizer)
        colds.append([along(grammars, course, row) for course in first])
        along_all = [[along(grammars, course, row) for course in courses] for _ in range(3)]
        warms += along_all[1:]
    cold, warm = _typical(colds), _typical(warms)
    slowest, course = max(zip(warm, courses, strict=True), key=lambda each: max(each[0]))
    before = tokenizer.decode(course.tokens[: int(np.argmax(slowest))])
    return {
        "vocabulary": tokenizer.vocab_size,
        "masks": sum(map(len, warm)),
        **_quantiles("cold", cold),
        **_quantiles("warm", warm),
        "slowest": f"{course.name} after {before[-24:]!r}",
    }


def _typical(passes: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The medians at each place of each text."""
    return [np.median(np.array(same), axis=0).tolist() for same in zip(*passes, strict=True)]


def steps(tokenizer: Tokenizer, courses: Sequence[Course], batch: int, count: int = 200) -> dict[str, Any]:
    """Milliseconds of all masks of a step, of a batch that goes along texts, each followed by another at its end."""
    grammars, row = _fresh(tokenizer)
    for course in courses:
        along(grammars, course, row)
    draw = random.Random(0)
    running = [_begun(grammars, draw.choice(courses), draw) for _ in range(batch)]
    spent = []
    for _ in range(count):
        start = time.perf_counter()
        for automaton, _ in running:
            automaton.mask(row)
        spent.append(1e3 * (time.perf_counter() - start))
        for i, (automaton, left) in enumerate(running):
            try:
                automaton.advance((left.pop(0),))
            except GrammarError:
                left.clear()
            if not left:
                running[i] = _begun(grammars, draw.choice(courses), draw)
    p50, p99 = (float(np.quantile(spent, q)) for q in (0.5, 0.99))
    return {"batch": batch, "steps": count, "masks of a step: p50 ms": p50, "p99 ms": p99, "max ms": max(spent)}


def _begun(grammars: GrammarCache, course: Course, draw: random.Random) -> tuple[LLAutomaton, list[int]]:
    """A sequence somewhere in a text."""
    automaton, tokens = grammars.automaton(course.program), list(course.tokens)
    for _ in range(draw.randrange(len(tokens))):
        try:
            automaton.advance(tokens[:1])
        except GrammarError:
            return _begun(grammars, course, draw)
        tokens.pop(0)
    return automaton, tokens


def _fresh(tokenizer: Tokenizer) -> tuple[GrammarCache, np.ndarray[Any, np.dtype[np.uint32]]]:
    grammars = GrammarCache(tokenizer, tokenizer.vocab_size, tokenizer.eos)
    return grammars, np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)


def _quantiles(name: str, places: Sequence[Sequence[float]]) -> dict[str, float]:
    spent = np.concatenate([np.array(text) for text in places])
    p50, p99 = (float(np.quantile(spent, q)) for q in (0.5, 0.99))
    return {f"{name} p50 us": p50, f"{name} p99 us": p99, f"{name} max us": float(spent.max())}
