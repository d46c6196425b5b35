"""The fourteen workloads. In: nothing. Out: of each both ways to write it, what it counts, what can be turned off.

`rounds`: dependent round trips of the expert client. `submissions`: of one program, as whole. `steps`: decode steps on
the critical path, with as large a batch as one likes and without forced text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ramet as rt
from programs_parts import bodies, experts
from programs_parts.client import Client
from programs_parts.scenes import Row
from ramet.runtime.config import Policy


@dataclass(frozen=True, slots=True)
class Toggle:
    """Something of ours that is turned off: arguments of the program, or the engine's policy."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy = "peak"


@dataclass(frozen=True, slots=True)
class Workload:
    """See the module. `share`: the KV pool holds so much of the sum of all programs' peaks (0: all there is);
    `planned`: it compiles to a plan that runs without Python (else with graph breaks: the body runs beside it, and
    goes on from there); `greedy`: equal prompts have equal answers."""

    number: int
    name: str
    expert: Callable[[Client, Row], Awaitable[Any]]
    program: rt.Program[..., Any]
    arguments: Callable[[Row], dict[str, Any]]
    rounds: int
    submissions: int
    steps: int
    planned: bool = False
    greedy: bool = True
    share: float = 0.0
    toggles: tuple[Toggle, ...] = ()

    def static(self, row: Row) -> dict[str, Any]:
        """The arguments that a plan has compiled in: those that are no text."""
        return {name: value for name, value in self.arguments(row).items() if not isinstance(value, str)}

    @property
    def label(self) -> str:
        """W00 to W13."""
        return f"W{self.number:02}"


def _named(*names: str) -> Callable[[Row], dict[str, Any]]:
    def arguments(row: Row) -> dict[str, Any]:
        return dict(zip(names, row.texts, strict=True))

    return arguments


def _with_turns(*names: str) -> Callable[[Row], dict[str, Any]]:
    def arguments(row: Row) -> dict[str, Any]:
        return {**_named(*names)(row), "turns": row.turns}

    return arguments


def _voting(row: Row) -> dict[str, Any]:
    return {"question": row.texts[0], "lengths": row.lengths}


def _rolling(row: Row) -> dict[str, Any]:
    return {"task": row.texts[0], "first": row.turns[0].result, "second": row.turns[1].result}


_FOUR = ("first", "second", "third", "fourth")
_NO_JUMP = (Toggle("jump off", {"jump": "off"}),)
_PRESSED = (Toggle("lru-fcfs", policy="lru-fcfs"), Toggle("age", policy="age"))
# fmt: off
WORKLOADS = (
    Workload(0, "chat_control", experts.chat_control, bodies.chat_control, _named("prompt"), 1, 1, 80, planned=True),
    Workload(1, "mmlu", experts.mmlu, bodies.mmlu, _named("shots", "question"), 1, 1, 1, planned=True),
    Workload(2, "hellaswag", experts.hellaswag, bodies.hellaswag, _named("shots", "context", *_FOUR), 1, 1, 1,
             planned=True),
    Workload(3, "react", experts.react, bodies.react, _with_turns("shots", "question"), 12, 1, 192),
    Workload(4, "tot", experts.tree_of_thought, bodies.tree_of_thought, _named("base", "problem"), 6, 3, 123),
    Workload(5, "sot", experts.skeleton, bodies.skeleton, _named("question"), 3, 2, 128),
    Workload(6, "judge", experts.judge, bodies.judge, _named("essay"), 3, 1, 66, planned=True, toggles=_NO_JUMP),
    Workload(7, "json", experts.invoice, bodies.invoice, _named("letter"), 1, 1, 109, planned=True, toggles=_NO_JUMP),
    Workload(8, "chat_short", experts.chat_short, bodies.chat_short, _named(*_FOUR), 4, 1, 32, planned=True),
    Workload(9, "chat_long", experts.chat_long, bodies.chat_long, _named(*_FOUR), 4, 1, 256, planned=True),
    Workload(10, "rag", experts.rag, bodies.rag, _named("question", *_FOUR, "fifth"), 2, 2, 33, planned=True),
    Workload(11, "agents_pressure", experts.agent, bodies.agent, _with_turns("session"), 6, 1, 144, share=0.45,
             toggles=_PRESSED),
    Workload(12, "vote", experts.vote, bodies.vote, _voting, 1, 1, 160, greedy=False,
             toggles=(Toggle("early stop off", {"early_stop": False}),)),
    Workload(13, "rollouts", experts.rollouts, bodies.rollouts, _rolling, 3, 1, 96, planned=True, greedy=False),
)
# fmt: on
