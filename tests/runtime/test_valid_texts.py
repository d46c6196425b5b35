"""Every text that a constraint let through is valid, by validators that share no code with the engine: Python's `re`,
`jsonschema`, recognisers written out here. The model is random and hot, so that it tries whatever it may."""

from __future__ import annotations

import json
import random
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jsonschema
import pytest

from ramet.frontend import ir
from ramet.frontend.backends.engine import Engine
from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar.automaton import GrammarCache
from ramet.runtime.grammar.base import Compiled

pytestmark = pytest.mark.model
SAMPLE = Path(__file__).parents[1] / "data" / "grammar"
GENERATIONS = 2000  # nightly: 24,000
TOGETHER = 64  # programs at once
LONGEST = 56  # tokens of a text
JUMPS: tuple[ir.Jump, ...] = ("canonical", "exact", "off")
Check = Callable[[str], bool]


def lines(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (SAMPLE / name).read_text().splitlines()]


# -- recognisers


def balanced(text: str) -> bool:
    """(...(x)...), as many on either side."""
    depth = (len(text) - 1) // 2
    return text == "(" * depth + "x" + ")" * depth


def equal_runs(text: str) -> bool:
    """As many b as a, at least one."""
    half = len(text) // 2
    return half > 0 and text == "a" * half + "b" * half


def expression(text: str) -> bool:
    """Sums of products of digits, names and bracketed expressions, by recursive descent."""
    at = 0

    def atom() -> bool:
        nonlocal at
        found = re.compile(r"[0-9]{1,3}|[xyz]").match(text, at)
        if found:
            at = found.end()
            return True
        if text[at : at + 1] != "(":
            return False
        at += 1
        if not terms() or text[at : at + 1] != ")":
            return False
        at += 1
        return True

    def terms() -> bool:
        nonlocal at
        while atom():
            if text[at : at + 1] not in ("+", "*"):
                return True
            at += 1
        return False

    return terms() and at == len(text)


EXPRESSION = """start: term (("+" | "*") term)*
term: NUMBER | "x" | "y" | "z" | "(" start ")"
NUMBER: /[0-9]{1,3}/
"""
WORDS = ("to", "tomorrow", "today", "töday", "to day", "日本")
GRAMMARS: list[tuple[ir.Constraint, Check]] = [
    (ir.Grammar(EXPRESSION), expression),
    (ir.Grammar('start: "a" start "b" | "a" "b"'), equal_runs),
    (ir.Grammar('root ::= "(" root ")" | "x"\n', "ebnf"), balanced),
    (ir.Grammar('root ::= ("ab" | "a" "c"?){2,5}\n', "ebnf"), lambda t: bool(re.fullmatch("(ab|ac?){2,5}", t))),
    (ir.Choices(WORDS), WORDS.__contains__),
]
PATTERNS = [
    r"(yes|no|maybe)( (yes|no|maybe)){0,4}",
    r"[\w.]{1,12}@[a-z]{1,8}\.(com|org|de)",
    r"(?i:ramet) v\d{1,2}\.\d{1,2}(-(alpha|beta|rc\d))?",
    r"[^a-z]{2,6}",
    r"(\d{1,3}\.){3}\d{1,3}",
    r"#[0-9A-Fa-f]{6}",
    r"The (cat|dog|Käse|猫) is \w{1,6}\.\n?",
    r".{3,9}",
    r"\S+\s\S+",
    r"a{0,3}b{2}c{1,}d?",
    r"(ab|abc|abcd|bcd){1,4}",
    r"\s*x\s*",
]
SCHEMAS: list[object] = [
    {"type": "integer", "minimum": -17, "maximum": 4203},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"enum": ["red", 3, None, True, {"a": [1, "b"]}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "string", "maxLength": 3}], "items": False, "minItems": 2},
    {"type": ["string", "null"], "pattern": "^[A-Z]{2,4}$"},
    {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["name", "next"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}, "b": {"type": "boolean"}},
        "additionalProperties": {"type": "null"},
        "maxProperties": 3,
    },
    {
        "type": "object",
        "properties": {"kind": {"const": "river"}, "length": {"type": "integer", "minimum": 1, "maximum": 6400}},
        "required": ["kind", "length"],
        "additionalProperties": False,
    },
]


def matches(pattern: str) -> Check:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # "[[" may mean something else one day
        compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


def validates(schema: object) -> Check:
    validator = jsonschema.Draft202012Validator(schema)  # type: ignore[arg-type]
    return lambda text: validator.is_valid(json.loads(text))


def cases() -> list[tuple[ir.Constraint, Check]]:
    """Constraints with what their texts have to be."""
    found = list(GRAMMARS)
    found += [(ir.Grammar(str(c["grammar"]), "ebnf"), matches(p)) for c, p in zip(_grammars(), _AS_REGEX, strict=True)]
    sampled = [str(case["pattern"]) for name in ("regexes", "nasty_regexes") for case in lines(f"{name}.jsonl")]
    for pattern in (*PATTERNS, *sampled):
        try:
            found.append((ir.Regex(pattern), matches(pattern)))
        except re.error:
            continue
    for schema in (*SCHEMAS, *(case["schema"] for case in lines("schemas.jsonl"))):
        for whitespace in ("fixed", "flexible"):
            found.append((ir.JsonSchema(json.dumps(schema), whitespace), validates(schema)))  # type: ignore[arg-type]
    return found


_AS_REGEX = ["[a-z]+(, [a-z]+)*", r'[a-z_]+=("[^"]*"|[0-9]+)']


def _grammars() -> list[dict[str, object]]:
    return [case for case in lines("grammars.jsonl") if case["id"] in ("p_list", "p_kv")]


# -- generating


@dataclass
class Made:
    """One text, and what it is to be."""

    constraint: ir.Constraint
    check: Check
    op: ir.Gen
    done: ir.Finished | None = None
    failed: ir.Failed | None = None


class Writers:
    """Runs programs of two generations each, `TOGETHER` at once."""

    def __init__(self, engine: Engine, made: Iterator[Made]) -> None:
        self._engine = engine
        self._made = made
        self._places = threading.Semaphore(TOGETHER)
        self.written: list[Made] = []

    def run(self) -> list[Made]:
        """All of them, when all are over."""
        while pair := list(islice(self._made, 2)):
            self._places.acquire()
            self._begin(pair)
        for _ in range(TOGETHER):
            self._places.acquire()
        return self.written

    def _begin(self, pair: list[Made]) -> None:
        ops: list[ir.AnyOp] = []
        for i, made in enumerate(pair):
            ops += [ir.Text(id=f"0.t{i}", seq="0", parts=("Once, twice: ",)), made.op]
        by_id = {made.op.id: made for made in pair}

        def deliver(event: ir.Event) -> None:
            if isinstance(event, ir.Finished):
                by_id[event.op].done = event
            elif isinstance(event, ir.Failed) and event.op in by_id:
                by_id[event.op].failed = event
            elif isinstance(event, ir.Ended):
                self._places.release()

        session = self._engine.open(ir.Header(), deliver)
        session.send(ops)
        session.end()
        self.written += pair


def plan(known: list[tuple[ir.Constraint, Check]], count: int, seed: int) -> Iterator[Made]:
    """`count` generations over all constraints, of every jump, of temperatures from 1 to 5."""
    rng = random.Random(seed)
    for i in range(count):
        constraint, check = known[i % len(known)]
        heat, ignore_eos = rng.uniform(1.0, 5.0), rng.random() < 0.1
        sampling = ir.Sampling(max_tokens=LONGEST, temperature=heat, seed=rng.getrandbits(32), ignore_eos=ignore_eos)
        op = ir.Gen(
            id=f"0.g{i % 2}", seq="0", var="x", sampling=sampling, constraint=constraint, jump=rng.choice(JUMPS)
        )
        yield Made(constraint, check, op)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    options = {"threads": 1, "dtype": "float32", "device": "cpu", "kv_tokens": 32768, "context": 1024}
    with Engine("random:tiny", in_process=True, **options) as started:  # type: ignore[arg-type]
        yield started


def usable(engine: Engine) -> list[tuple[ir.Constraint, Check, Compiled]]:
    """Those of the constraints that are not refused."""
    found = []
    for constraint, check in cases():
        try:
            found.append((constraint, check, engine._client.compiler.compile(constraint)))
        except (ConstraintError, re.error):
            continue
    return found


def hold(engine: Engine, count: int, seed: int) -> Counter[str]:
    """Generate `count` texts and check each; how many ended for which reason."""
    known = usable(engine)
    assert len(known) > 150
    programs = {id(constraint): compiled.program for constraint, _, compiled in known}
    pairs = [(constraint, check) for constraint, check, compiled in known if compiled.shortest <= LONGEST]
    written = Writers(engine, plan(pairs, count, seed)).run()
    assert len(written) == count
    tokenizer = engine._client.tokenizer
    grammars = GrammarCache(tokenizer, tokenizer.vocab_size, tokenizer.eos)
    ended: Counter[str] = Counter()
    for made in written:
        assert made.failed is None and made.done is not None, (made.op, made.failed)
        value, meta = made.done.value, made.done.meta
        ended[meta.finish_reason] += 1
        if meta.finish_reason == "stop":
            assert made.check(value), (made.op, value)
        else:
            assert len(meta.tokens) == LONGEST, (made.op, value)
            grammars.automaton(programs[id(made.constraint)]).advance(meta.tokens)  # the beginning of a text
        assert meta.forced_tokens <= meta.completion_tokens == len(meta.tokens)
        assert made.op.jump != "off" or not meta.forced_tokens
    return ended


def test_every_text_is_valid_or_the_beginning_of_one(engine: Engine) -> None:
    ended = hold(engine, GENERATIONS, seed=1)
    assert ended["stop"] > GENERATIONS // 2, ended


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 8))
def test_every_text_of_many_more_is_valid(engine: Engine, seed: int) -> None:
    hold(engine, 4 * GENERATIONS, seed)


@pytest.mark.parametrize("pattern", [r"(\w{1,50}\s){1,50}", r"(?i)[^\W\d_]{1,100}(\s[^\W\d_]{1,100}){0,50}"])
def test_what_would_fill_the_engines_lexer_is_refused(engine: Engine, pattern: str) -> None:
    with pytest.raises(ConstraintError, match=r"^regex=.*\(limit: "):
        engine._client.compiler.compile(ir.Regex(pattern))
