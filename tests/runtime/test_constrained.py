"""Constrained generation in the step loop: the equality ladder, jump-forward and what it counts, how ops end."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.grammar.automaton import HEADER, GrammarCache
from ramet.runtime.models import hub
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.runner import TorchRunner
from ramet.runtime.sequence import Generating
from ramet.runtime.text import Tokenizer

from .driving import Drive

SPEC = replace(hub.PRESETS["tiny"], layers=1)
HOUSES = ["Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff"]
CHARACTER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12, "pattern": "^[A-Z][a-z]+$"},
        "house": {"enum": HOUSES},
        "blood status": {"enum": ["Pure-blood", "Half-blood", "Muggle-born"]},
        "alive": {"type": "boolean"},
        "age": {"type": "integer", "minimum": 1, "maximum": 150},
    },
    "required": ["name", "house", "blood status", "alive", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}
SCHEMA = f"{HEADER}start: %json {json.dumps(CHARACTER)}\n"
PROMPT = "Describe a wizard as JSON.\n"


def regex(pattern: str) -> str:
    """A program whose texts match a pattern."""
    return f"{HEADER}start: /{pattern}/\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(hub.resolve("random:tiny"))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> GrammarCache:
    return GrammarCache(tokenizer, SPEC.vocab, tokenizer.eos)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.set_num_threads(1)
    return Decoder(SPEC, random_weights(SPEC, torch.bfloat16, seed=3), "cpu", torch.bfloat16)


class Bench:
    """Makes engines around one model, and constrained programs in them."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, grammars: GrammarCache) -> None:
        self.tokenizer = tokenizer
        self._decoder = decoder
        self._grammars = grammars

    def drive(self, *, capacity: int = 4096, **limits: object) -> Drive:
        runner = TorchRunner(self._decoder, capacity=capacity, rows=32, context=1024, threads=1)
        eos = self.tokenizer.eos
        return Drive(runner, tokenizer=self.tokenizer, eos=eos, grammars=self._grammars, **limits)

    def begin(
        self, d: Drive, program: str, *, jump: str = "canonical", seed: int = 0, longest: int = 0, **sampling: object
    ) -> str:
        chosen = Sampling(**{"temperature": 1.0, "max_tokens": 200, **sampling})  # type: ignore[arg-type]
        prompt = m.Append("0.0", "0", (tuple(self.tokenizer.encode(PROMPT)),))
        return d.program(prompt, m.Generate("0.1", "0", chosen, seed, program, jump, longest))  # type: ignore[arg-type]

    def text(self, d: Drive, name: str) -> str:
        return self.tokenizer.decode(d[name, "0.1"].tokens)


@pytest.fixture(scope="module")
def bench(decoder: Decoder, tokenizer: Tokenizer, grammars: GrammarCache) -> Bench:
    return Bench(decoder, tokenizer, grammars)


def done(d: Drive, name: str) -> m.Done:
    result = d[name, "0.1"]
    assert result.failure is None and isinstance(result.done, m.Done), result.failure
    return result.done


def is_a_character(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == list(CHARACTER["properties"])  # type: ignore[call-overload]
        and bool(re.fullmatch("[A-Z][a-z]{1,11}", value["name"]))
        and value["house"] in HOUSES
        and 1 <= value["age"] <= 150
    )


# -- the equality ladder


REQUESTS = [
    (SCHEMA, {"temperature": 0.0, "logprobs": 2}),
    (SCHEMA, {"temperature": 1.5, "seed": 1}),
    (regex("v[0-9]+(\\.[0-9]{1,3})?"), {"temperature": 2.0, "seed": 2, "max_tokens": 9}),
    (regex("(the quick brown fox|the quick red fox) jumps over [a-z]{1,9} dogs"), {"seed": 3, "logprobs": 0}),
    (SCHEMA, {"temperature": 0.8, "seed": 4, "frequency_penalty": 0.5, "repetition_penalty": 1.1}),
    ("", {"temperature": 1.0, "seed": 5, "max_tokens": 30}),
]


def begun(bench: Bench, d: Drive, jump: str) -> list[str]:
    return [bench.begin(d, program, jump=jump, **options) for program, options in REQUESTS]


def results(d: Drive, names: list[str]) -> list[tuple[object, ...]]:
    return [d[name, "0.1"].bits for name in names]


@pytest.fixture(scope="module", params=["off", "exact", "canonical"])
def ladder(bench: Bench, request: pytest.FixtureRequest) -> tuple[str, list[tuple[object, ...]]]:
    """Each request alone in an engine of its own."""
    bits = []
    for program, options in REQUESTS:
        d = bench.drive()
        name = bench.begin(d, program, jump=request.param, **options)
        d.run()
        done(d, name)
        bits.append(d[name, "0.1"].bits)
    return request.param, bits


LIMITS = [
    {},
    {"overlap": False},
    {"chunk_tokens": 3},
    {"batch_tokens": 7},
    {"batch_tokens": 24, "capacity": 400},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_ladder_holds(bench: Bench, ladder: tuple[str, list[tuple[object, ...]]], limits: dict[str, int]) -> None:
    jump, alone = ladder
    d = bench.drive(**limits)
    names = begun(bench, d, jump)
    d.run()
    assert results(d, names) == alone
    warm = begun(bench, d, jump)
    d.run()
    assert results(d, warm) == alone


def test_the_ladder_holds_for_who_is_retracted_at_any_step(
    bench: Bench, ladder: tuple[str, list[tuple[object, ...]]]
) -> None:
    jump, alone = ladder
    d = bench.drive()
    names = begun(bench, d, jump)

    def retract(n: int) -> None:
        running = list(d.core.scheduler.running)
        held = [s for s in running if not (isinstance(s.task, Generating) and len(s.task.lent))]
        if n % 3 == 2 and held:
            d.core.scheduler.retract(held[n % len(held)])

    d.run(before=retract)
    assert d.core.scheduler.retractions > 2
    assert results(d, names) == alone


def test_exact_jumps_give_the_tokens_of_sampling_every_one(bench: Bench) -> None:
    for program, options in REQUESTS:
        found = []
        for jump in ("off", "exact"):
            d = bench.drive()
            name = bench.begin(d, program, jump=jump, **options)
            d.run()
            found.append((d[name, "0.1"].bits, done(d, name).reason, done(d, name).matched))
        assert found[0] == found[1]


# -- jumps


def steps(bench: Bench, program: str, jump: str, **options: object) -> tuple[int, str]:
    d = bench.drive(overlap=False)  # with it, a step that is in the air when the text ends counts too
    name = bench.begin(d, program, jump=jump, **options)
    d.run()
    assert done(d, name).reason == "stop"
    return d.over[name].steps, bench.text(d, name)


def test_forced_text_costs_no_steps(bench: Bench) -> None:
    off, text = steps(bench, SCHEMA, "off")
    exact, same = steps(bench, SCHEMA, "exact")
    on, other = steps(bench, SCHEMA, "canonical")
    assert text == same
    assert is_a_character(text) and is_a_character(other)
    assert exact < off
    assert off >= 3 * on


def test_free_text_takes_the_same_steps(bench: Bench) -> None:
    counts = {steps(bench, regex("[a-z]{10,40}"), jump, temperature=0.0) for jump in ("off", "exact", "canonical")}
    assert len(counts) == 1


def test_forced_tokens_are_the_tokenisers_own(bench: Bench) -> None:
    for seed in range(8):
        d = bench.drive()
        name = bench.begin(d, regex("Dear (Ada|Grace|Barbara), the answer is (yes|no|maybe)\\. Yours"), seed=seed)
        d.run()
        text = bench.text(d, name)
        head = bench.tokenizer.encode("Dear")
        assert d[name, "0.1"].tokens[: len(head)] == head
        assert re.fullmatch(r"Dear (Ada|Grace|Barbara), the answer is (yes|no|maybe)\. Yours", text)
        assert d[name, "0.1"].tokens[-2:] == bench.tokenizer.encode(". Yours")


def test_text_without_any_choice_needs_no_step_at_all(bench: Bench) -> None:
    d = bench.drive()
    name = bench.begin(d, regex("nothing to decide"), logprobs=1)
    d.run()
    end = done(d, name)
    assert bench.text(d, name) == "nothing to decide"
    assert (end.reason, end.forced, d.over[name].steps) == ("stop", len(d[name, "0.1"].tokens), 0)
    assert all(math.isnan(p) for p in d[name, "0.1"].logprobs)
    assert d.over[name].forced == end.forced


def test_a_forced_beginning_is_shared_like_a_prompt(bench: Bench) -> None:
    d = bench.drive()
    first = bench.begin(d, SCHEMA, seed=1)
    d.run()
    second = bench.begin(d, SCHEMA, seed=2)
    d.run()
    assert d.over[first].computed - d.over[second].computed >= len(bench.tokenizer.encode(PROMPT + '{"name": ')) - 2


def test_what_follows_a_constrained_value_sees_its_tokens(bench: Bench) -> None:
    d = bench.drive()
    prompt = tuple(bench.tokenizer.encode(PROMPT))
    greedy = Sampling(temperature=0.0, max_tokens=6)
    ops = (m.Generate("0.1", "0", greedy, 0, regex("(red|green) light")), m.Generate("0.2", "0", greedy, 0))
    name = d.program(m.Append("0.0", "0", (prompt,)), *ops)
    d.run()
    tokens = d[name, "0.1"].tokens
    alone = d.program(m.Append("0.0", "0", (prompt + tuple(tokens),)), m.Generate("0.2", "0", greedy, 0))
    d.run()
    assert d[name, "0.2"].bits == d[alone, "0.2"].bits


# -- how ops end


@pytest.mark.parametrize("jump", ["off", "exact", "canonical"])
def test_max_tokens_cuts_forced_text_too(bench: Bench, jump: str) -> None:
    d = bench.drive()
    for most in range(1, 24):
        name = bench.begin(d, SCHEMA, jump=jump, seed=9, max_tokens=most)
        d.run()
        assert done(d, name).reason == "length"
        assert len(d[name, "0.1"].tokens) == most


@pytest.mark.parametrize("jump", ["off", "exact", "canonical"])
def test_stop_strings_end_forced_text(bench: Bench, jump: str) -> None:
    d = bench.drive()
    name = bench.begin(d, SCHEMA, jump=jump, stop=("blood st",), seed=3)
    d.run()
    assert done(d, name).matched == "blood st"
    assert re.fullmatch(r'\{"name": "[A-Z][a-z]+", "house": "\w+", "', bench.text(d, name))


@pytest.mark.parametrize("jump", ["off", "exact", "canonical"])
@pytest.mark.parametrize("options", [{"min_tokens": 50}, {"ignore_eos": True}], ids=str)
def test_a_complete_text_ends_whatever_else_was_asked(bench: Bench, jump: str, options: dict[str, object]) -> None:
    d = bench.drive()
    name = bench.begin(d, regex("(yes|no)( (yes|no)){0,2}"), jump=jump, **options)
    d.run()
    assert done(d, name).reason == "stop"
    assert len(bench.text(d, name).split()) == 3  # the end was never sampled where it was banned


def test_a_text_that_may_go_on_ends_by_the_end_token(bench: Bench) -> None:
    ended = set()
    for seed in range(12):
        d = bench.drive()
        name = bench.begin(d, regex("[0-9]{1,6}"), seed=seed, temperature=3.0)
        d.run()
        assert re.fullmatch("[0-9]{1,6}", bench.text(d, name))
        ended.add(done(d, name).matched)
    assert None in ended  # six digits: nothing can follow


def test_a_bias_that_forbids_all_that_is_allowed_fails_that_op_alone(bench: Bench) -> None:
    d = bench.drive()
    ids = [t for t in range(SPEC.vocab) if bench.tokenizer.token_bytes(t) in (b"0", b"1")]
    assert len(ids) == 2
    bad = bench.begin(d, regex("[01]"), logit_bias=dict.fromkeys(ids, -100.0))
    good = bench.begin(d, regex("[01]"), seed=4)
    d.run()
    assert bench.text(d, good) in ("0", "1")
    assert d[bad, "0.1"].failure is not None or bench.text(d, bad) in ("0", "1")


def test_a_grammar_that_cannot_be_read_fails_its_op_alone(bench: Bench) -> None:
    d = bench.drive()
    bad = bench.begin(d, "start: (")
    good = bench.begin(d, regex("ok|okay"))
    d.run()
    assert d[bad, "0.1"].failure is not None and d[bad, "0.1"].failure.kind == "constraint"
    assert bench.text(d, good) in ("ok", "okay")


def test_an_engine_without_grammars_says_so(decoder: Decoder, tokenizer: Tokenizer) -> None:
    d = Drive(TorchRunner(decoder, capacity=256, rows=4, context=128, threads=1), tokenizer=tokenizer)
    name = Bench(decoder, tokenizer, None).begin(d, regex("a"))  # type: ignore[arg-type]
    d.run()
    assert d[name, "0.1"].failure is not None and "no grammars" in d[name, "0.1"].failure.message


def test_many_complete_ops_in_a_row_do_not_nest(bench: Bench) -> None:
    d = bench.drive()
    prompt = m.Append("0.0", "0", (tuple(bench.tokenizer.encode(PROMPT)),))
    ops = [m.Generate(f"0.{k}", "0", Sampling(max_tokens=3), 0, regex("x")) for k in range(1, 700)]
    name = d.program(prompt, *ops)
    d.run()
    assert d.over[name].kind == "" and d.over[name].forced == len(ops)


def test_aborted_with_guesses_in_the_air(bench: Bench) -> None:
    for at in range(1, 12):
        d = bench.drive()
        name = bench.begin(d, SCHEMA, jump="exact", seed=at)

        def abort(n: int, at: int = at, name: str = name, d: Drive = d) -> None:
            if n == at:
                d.order(m.OrderAbort(name))

        d.run(before=abort)
        assert d.core.stats().kv_used == 0
