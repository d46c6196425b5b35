"""The rows: in: nothing. Out: each promise, how it is measured, how large, which rules and tests it concerns.

`whole` is the size that is promised, `small` what a quick look takes. A size `few` in between is not offered: a row is
at its size, or it says that it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reliability_parts import crowds, faults, grammars, hostile, soak, suites, tenants
from reliability_parts.board import Finding, Row
from reliability_parts.place import Place

Measure = Callable[[Place, Mapping[str, float]], list[Finding]]


@dataclass(frozen=True, slots=True)
class Promise:
    """One row. `rules`: those of the reliability rules that it is about; `tests`: files that prove it, in the small."""

    key: str
    title: str
    promise: str
    measure: Measure
    whole: dict[str, float]
    small: dict[str, float]
    rules: str
    tests: tuple[str, ...]
    how: str

    def row(self, *, quick: bool) -> Row:
        """Its row, nothing measured yet."""
        size = self.small if quick else self.whole
        return Row(self.key, self.title, self.promise, self.rules, self.tests, dict(size), not quick)


PROMISES: tuple[Promise, ...] = (
    Promise(
        "storm",
        "Disconnect storm",
        "1,000 streaming clients, half of whom vanish: the others get the right text, slots are back within 1 s",
        crowds.storm,
        {"clients": 1000},
        {"clients": 48},
        "R10, invariant 6",
        ("tests/server/test_storm.py",),
        "A quarter leaves after 1 to 11 events, a quarter at one instant while it is being served; half of them by a "
        "TCP reset, half by closing. The text of each survivor is compared with that of the same request alone.",
    ),
    Promise(
        "overload",
        "Overload",
        "ten times as many requests as can be served: only 200 and 429, each 429 with Retry-After, at least 90 % of "
        "capacity kept",
        crowds.overload,
        {"turns": 4, "seconds": 5, "tokens": 48},
        {"turns": 1, "seconds": 1, "tokens": 900},
        "R6",
        ("tests/server/test_gate.py", "tests/server/test_service.py"),
        "On the real model, by the engine's own count of tokens: under clients that wait for their answer (capacity), "
        "and under ten times as many requests a second, as a Poisson process that nothing slows down; in turns.",
    ),
    Promise(
        "overcommit",
        "Four times too little memory",
        "KV four times over-committed: no abort, answers equal to those alone",
        crowds.overcommit,
        {"requests": 64, "slots": 4096},
        {"requests": 16, "slots": 1024},
        "invariants 1 to 6, equality",
        ("tests/runtime/test_equality.py", "tests/runtime/test_lack.py", "tests/sim/test_simulation.py"),
        "All requests at once, every eighth a fork of four; then each alone.",
    ),
    Promise(
        "kill",
        "Engine killed",
        "the engine killed with -9, 50 times at random points: no client hangs or is cut silently, service is back "
        "within the model's load and 2 s, without help",
        faults.killed,
        {"kills": 50, "real": 5},
        {"kills": 2},
        "R10",
        ("tests/server/test_kill.py", "tests/server/test_watch.py"),
        "Eight clients ask for streams and whole answers without end. Each answer must be whole and right, a 503 with "
        "Retry-After, or a stream that ends by an error event and without [DONE]. Back is when a request is answered.",
    ),
    Promise(
        "stop",
        "Engine stopped",
        "an engine that stands still (SIGSTOP) is noticed by /ready within 15 s and replaced",
        faults.stopped,
        {"times": 2},
        {"times": 1},
        "R10",
        ("tests/server/test_watch.py",),
        "Under the same load as above.",
    ),
    Promise(
        "drain",
        "SIGTERM",
        "what is under way finishes within the drain limit, newcomers get 503 and Retry-After, exit 0, no orphans",
        faults.drained,
        {"clients": 32, "tokens": 600},
        {"clients": 8, "tokens": 300},
        "R10",
        ("tests/server/test_command.py",),
        "Streams and whole answers under way; a newcomer every 10 ms until nobody listens; then all processes that the "
        "server ever started are looked for. Once more with a limit that is too short: streams are told.",
    ),
    Promise(
        "fuzz",
        "Nonsense over HTTP",
        "20,000 fuzzed HTTP requests: no 5xx, no hang, no trace",
        hostile.fuzzed,
        {"requests": 20_000},
        {"requests": 400},
        "R5, R6, R7, R11, R12",
        ("tests/server/test_fuzz.py", "tests/server/test_connection.py", "tests/security/test_r06_bodies.py"),
        "Bodies made from the server's own OpenAPI description with something wrong in every second one, odd methods, "
        "paths and headers; one in twenty is no HTTP at all, or lies about its length. A 504 is right for who sets "
        "a limit.",
    ),
    Promise(
        "bombs",
        "Grammar bombs",
        "costly constraints are refused within 2 s each, and another client's stream is at most one step late",
        grammars.bombed,
        {"turns": 10, "tokens": 1500, "at_once": 1},
        {"turns": 2, "tokens": 300, "at_once": 1},
        "R4",
        ("tests/security/test_r04_grammars.py", "tests/runtime/grammar/test_compiler.py"),
        "24 patterns, schemas and grammars, others in each turn, one after the other beside a stream of the real "
        "model, from a process of low priority that stands for another machine; percentiles of the "
        "gaps between two tokens with and without them, in turns: the 99.9th would show a single kind.",
    ),
    Promise(
        "soak",
        "Soak",
        "resident memory grows by less than 1 % an hour, and no file stays open",
        soak.soaked,
        {"minutes": 3},
        {"minutes": 0.5},
        "R4, R10",
        ("tests/security/test_r04_grammars.py", "tests/runtime/test_slots.py"),
        "Streams, chats, forks, programs, constraints, costly constraints, wrong requests, disconnects. The slope is "
        "of anonymous memory, with its standard error; a run that is too short to say so is not measured.",
    ),
    Promise(
        "fair",
        "Fairness",
        "a tenant that floods leaves another that asks its share: at least 40 % of the tokens of two",
        tenants.fair,
        {"flood": 96, "seconds": 12},
        {"flood": 48, "seconds": 3},
        "R9",
        ("tests/server/test_gate.py", "tests/runtime/test_waiting.py"),
        "96 clients with long answers on one key, 24 with short ones on another, an engine that decodes 8 at once.",
    ),
    Promise(
        "probes",
        "Cache probes",
        "what one tenant has cached can be told by another neither from cached_tokens nor from the time to a first "
        "token",
        tenants.probed,
        {"secrets": 120},
        {"secrets": 12},
        "R9",
        ("tests/security/test_r09_namespaces.py", "tests/runtime/test_text_cache.py"),
        "Prompts of about 1,700 tokens. The times of prompts that the other has cached and of new ones are compared by "
        "the area under the ROC curve, which is 0.5 without a signal; the bound is three standard deviations. The "
        "control is the owner's own prompts: they must be found cached, and their times must give them away.",
    ),
    Promise(
        "steps",
        "Simulated steps",
        "10^6 simulated scheduler steps with injected faults, all invariants after each: 0 leaked slots, every failure "
        "a seed",
        suites.simulated,
        {"steps": 1_000_000, "few": 40_000},
        {"steps": 2000, "few": 2000},
        "invariants 1 to 6",
        ("tests/sim/test_simulation.py", "tests/runtime/test_radix_model.py"),
        "`make sim`, whose figures are read where they are newer than the source; else a short campaign runs.",
    ),
    Promise(
        "anomalies",
        "The k-th failure",
        "the k-th allocation, send, grammar advance, ... fails, for k = 1, 2, ... until none is left: all clean",
        suites.anomalous,
        {"every": 1},
        {"every": 0},
        "invariants 1 to 6",
        ("tests/runtime/test_anomalies.py",),
        "Tests, each with a seeded leak as its control.",
    ),
)
