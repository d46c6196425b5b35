"""From a model's name to a running engine: what is imported for it, in which process, and what happens at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest

from ramet.frontend.errors import ModelError
from ramet.runtime.client import EngineClient
from ramet.runtime.models import hub
from ramet.runtime.start import configure, load_text
from ramet.runtime.template import ChatTemplate
from ramet.runtime.text import Tokenizer

from .engines import TINY

pytestmark = pytest.mark.model

NATIVE = {**TINY, "dtype": "int8"}
# Both processes say on standard error what they import.
FIRST_TOKEN = f"""
import sys
import ramet as rt
assert not any(name.startswith("ramet.") for name in sys.modules)
with rt.Engine("random:tiny", **{NATIVE!r}) as engine:
    @rt.function
    def one(s):
        s += "Once"
        return s.gen(max_tokens=1, ignore_eos=True).get()
    one.using(backend=engine)().result(60)
    print([name for name in ("numpy", "zmq", "tokenizers", "jinja2") if name in sys.modules])
"""


def imported(log: str) -> set[str]:
    return set(re.findall(r"\| +([\w.]+)$", log, re.MULTILINE))


def test_a_native_engine_imports_neither_torch_nor_anything_that_is_not_needed_yet() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FIRST_TOKEN],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = imported(done.stderr)
    assert {"ramet.runtime.native", "ramet.runtime.engine", "numpy", "ramet.runtime.client", "tokenizers"} <= found
    heavy = {"torch", "transformers", "triton", "safetensors", "gguf", "llguidance"}
    assert found & (heavy | {"rich", "typer", "httpx", "pydantic", "fastapi", "uvicorn"}) == set()
    assert "ramet.runtime.grammar.compiler" not in found  # no constraint came
    assert done.stdout.strip() == "['zmq', 'tokenizers', 'jinja2']"  # numbers are the engine's business


def test_the_probe_can_fail() -> None:
    assert imported("import time:       100 |        200 |   torch.nn\nother") == {"torch.nn"}


def client(text: object) -> EngineClient:
    return EngineClient(configure("random:tiny", TINY), text, in_process=True)  # type: ignore[arg-type]


def listening() -> int:
    return sum(thread.name == "ramet-client" for thread in threading.enumerate())


def test_the_engine_starts_while_text_is_loaded() -> None:
    before, during = listening(), []

    def text() -> tuple[Tokenizer, ChatTemplate]:
        during.append(listening())
        return load_text(configure("random:tiny", TINY), hub.resolve("random:tiny"))

    made = client(text)
    assert during == [before + 1] and made.alive
    made.close()
    assert listening() == before


def test_text_that_cannot_be_loaded_ends_the_engine_that_was_started() -> None:
    def text() -> tuple[Tokenizer, ChatTemplate]:
        raise ModelError("no template")

    before = listening()
    with pytest.raises(ModelError, match="no template"):
        client(text)
    assert listening() == before


def test_what_constraints_need_is_made_when_the_first_one_comes() -> None:
    made = EngineClient(
        configure("random:tiny", TINY),
        lambda: load_text(configure("random:tiny", TINY), hub.resolve("random:tiny")),
        in_process=True,
    )
    assert made._compiler is None
    assert made.compiler is made.compiler
    made.close()
