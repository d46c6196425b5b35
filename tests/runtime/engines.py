"""Engines for tests: small, in float32, in a thread with every invariant checked after every step, or in a process."""

from __future__ import annotations

import contextlib
import functools
import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.frontend.backends.through import Through
from ramet.frontend.ir import Header
from ramet.runtime import process, start
from ramet.runtime.config import Config
from ramet.runtime.engine import EngineCore
from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import tokenizer_of
from ramet.runtime.ports import ProcessLink
from ramet.runtime.template import ChatTemplate
from ramet.runtime.text import Tokenizer

WAIT = 60.0  # seconds until a test gives up on what hangs
TINY: dict[str, Any] = {"threads": 1, "dtype": "float32", "device": "cpu", "kv_tokens": 4096, "context": 1024}
# Starts without torch in a fifth of the time, and computes as much faster: not for tests that need one still at work.
QUICK: dict[str, Any] = {**TINY, "dtype": "auto"}

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@functools.cache
def tiny_text() -> tuple[Tokenizer, str | None, int]:
    """The tokenizer, which is immutable, the template and the longest context of `random:tiny`: a third of a second,
    which hundreds of engines share."""
    source = hub.resolve("random:tiny")
    spec, metadata = hub.load_both(source)
    return tokenizer_of(source, metadata), metadata.chat_template, spec.context


def text_of(config: Config, source: object = None) -> tuple[Tokenizer, ChatTemplate]:
    """What `ramet.runtime.start.load_text` loads for an engine of `random:tiny`."""
    tokenizer, template, longest = tiny_text()
    return tokenizer, ChatTemplate.of(template, tokenizer, config.context or longest)


class CheckedCore(EngineCore):
    """Checks all invariants after each step: a broken one ends the engine, and every program of it fails."""

    cores: list[EngineCore] = []  # noqa: RUF012 (the engines that a test has started)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cores.append(self)

    def step(self) -> None:
        super().step()
        self.check()


@contextlib.contextmanager
def checked_engine(**options: Any) -> Iterator[Engine]:
    """An engine in a thread. Leaves it only when it is clean: no program, no KV in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "EngineCore", CheckedCore)
        patch.setattr(start, "load_text", text_of)
        engine = Engine("random:tiny", in_process=True, **{**TINY, **options})
    with engine:
        yield engine
        assert_clean(engine)


def core_of(engine: Engine) -> EngineCore:
    """The core of the checked engine that was started last. Look at it only while nothing runs."""
    return CheckedCore.cores[-1]


def assert_clean(engine: Engine) -> None:
    """Nothing runs, nothing is held."""
    info = engine.info()
    kv = info["kv"]
    assert isinstance(kv, dict)
    assert (info["programs"], info["running"], info["waiting"], kv["used"]) == (0, 0, 0, 0)
    assert kv["free"] + kv["cached"] == kv["total"]


def link_of(engine: Engine) -> ProcessLink:
    """The wire to an engine in a process."""
    made = engine._client._made
    assert made is not None and isinstance(made[0], ProcessLink)
    return made[0]


class Ending:
    """The end of a process, to be waited for without polling. Make it while the process lives."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def within(self, seconds: float) -> bool:
        """True once the process has ended."""
        return bool(select.select([self._fd], [], [], seconds)[0])


class Tenant(Through):
    """The same engine under other headers: a priority, a namespace."""

    def __init__(self, engine: Engine, *, priority: int = 0, namespace: str = "") -> None:
        super().__init__(engine)
        self._fields = {"priority": priority, "namespace": namespace}

    def open(self, header: Header, deliver: Any) -> Any:
        return self.backend.open(Header(name=header.name, seed=header.seed, **self._fields), deliver)  # type: ignore[arg-type]


def words(count: int) -> str:
    """`count` tokens or more of plain text."""
    return " ".join(["tree", "river", "stone", "cloud"][i % 4] for i in range(count))


PROMPT = "A long story about trees. " + words(40)


@rt.function
def long_program(s: rt.State, branches: int = 3, tokens: int = 900) -> list[str]:
    """Branches that generate for long."""
    s += "Once upon a time"
    forks = s.fork(branches)
    for branch in forks:
        branch += rt.gen("story", max_tokens=tokens, ignore_eos=True)
    return [branch["story"] for branch in forks]


@rt.function
def short_program(s: rt.State, tokens: int = 5) -> str:
    """One short generation."""
    s += "Once upon a time"
    return s.gen(max_tokens=tokens, ignore_eos=True, temperature=0).get()
