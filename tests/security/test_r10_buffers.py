"""R10: what one request leaves in memory reaches no other: freed KV, rows' buffers and fresh memory are poisoned
between steps, and outputs do not change. Uninitialised memory has a stated reason and a covering write."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime import native as native_module
from ramet.runtime.draft import Draft
from ramet.runtime.grammar.automaton import HEADER, GrammarCache, LLAutomaton
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS, resolve
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.native import NativeRunner
from ramet.runtime.parameters import Parameters
from ramet.runtime.runner import TorchRunner
from ramet.runtime.sequence import Generating
from ramet.runtime.text import Tokenizer

from ..runtime.driving import Drive
from ..runtime.natives import native, needs_native, packed
from .poisoned import fresh_poison, spoil

ROOT = Path(native_module.__file__).parents[1]
SPEC = replace(PRESETS["tiny"], layers=2)
KERNELS = ["torch", pytest.param("native", marks=needs_native)]
GRAMMAR = f"{HEADER}start: /[a-f]{{3}}(one|two)[0-9]{{2,5}}/\n"
SAMPLINGS = (
    Sampling(temperature=0.0, max_tokens=9, logprobs=2, ignore_eos=True),
    Sampling(temperature=0.9, top_p=0.9, max_tokens=12, ignore_eos=True, frequency_penalty=0.4),
    Sampling(temperature=1.2, top_k=20, min_p=0.02, max_tokens=7, ignore_eos=True, repetition_penalty=1.2),
    Sampling(temperature=0.7, max_tokens=10, ignore_eos=True, logit_bias={9: 2.0}, logprobs=0),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve("random:tiny"))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> GrammarCache:
    return GrammarCache(tokenizer, SPEC.vocab, tokenizer.eos)


@pytest.fixture(scope="module", params=KERNELS)
def weights(request: pytest.FixtureRequest) -> Any:
    torch.set_num_threads(1)
    if request.param == "native":
        return packed(SPEC, "bfloat16", seed=3)
    return Decoder(SPEC, random_weights(SPEC, torch.bfloat16, seed=3), "cpu", torch.bfloat16)


Make = Callable[[], Drive]


@pytest.fixture(scope="module")
def make(weights: Any, tokenizer: Tokenizer, grammars: GrammarCache) -> Make:
    """A small engine: few rows and slots, so that they change hands all the time."""

    def made() -> Drive:
        sizes = {"capacity": 224, "rows": 4, "context": 128}
        torch_made = isinstance(weights, Decoder)
        runner = TorchRunner(weights, threads=1, **sizes) if torch_made else native(weights, **sizes)
        return Drive(runner, tokenizer=tokenizer, eos=tokenizer.eos, grammars=grammars, chunk_tokens=16)

    return made


def requests(drive: Drive) -> list[tuple[str, str]]:
    """Programs of every kind of call, of which only some find room at a time; (program, op) of their results."""
    found = []
    for i in range(8):
        tokens = tuple(np.random.default_rng(i % 5).integers(10, 900, 20 + 7 * i).tolist())
        text = m.Append("0.0", "0", (tokens,))
        chosen, at = SAMPLINGS[i % len(SAMPLINGS)], ["0.1"]
        ops: list[m.AnyOp] = [text, m.Generate("0.1", "0", chosen, 7 + i)]
        if i == 2:
            ops = [text, m.Generate("0.1", "0", Sampling(max_tokens=20), 5, GRAMMAR)]
        elif i == 3:
            branches = ("0.1.b0", "0.1.b1")
            ops = [text, m.Fork("0.1", "0", branches), *(m.Generate(f"{b}.0", b, chosen, 3) for b in branches)]
            at = [f"{b}.0" for b in branches]
        elif i == 4:
            ops = [text, m.Choose("0.1", "0", ((7, 8), (7, 9), (11,)), "unconditional_likelihood_normalized", (1,))]
        elif i == 5:
            ops = [text, m.Score("0.1", "0", 3, 2)]
        name = drive.program(*ops)
        found += [(name, op) for op in at]
    return found


def results(make: Make, *, poison: bool) -> list[tuple[object, ...]]:
    """Everything that was told of them."""
    drive = make()
    wanted = requests(drive)

    def before(step: int) -> None:
        if poison:
            spoil(drive.core)
        texts = [seq for seq in drive.core.scheduler.running if isinstance(seq.task, Generating)]
        if step % 7 == 3 and texts:  # rows change hands in the middle of a text
            drive.core.scheduler.retract(texts[0])
        if step % 11 == 5:
            drive.core.cache.flush()

    drive.run(before=before, limit=2000)
    if not poison:
        assert drive.core.scheduler.retractions > 2, "rows did not change hands"
    failed = [str(drive[key].failure) for key in wanted if drive[key].failure is not None]
    assert not failed, failed
    return [drive[key].bits for key in wanted]


@pytest.fixture(scope="module")
def clean(make: Make) -> list[tuple[object, ...]]:
    return results(make, poison=False)


def unchanged(make: Make, clean: list[tuple[object, ...]]) -> None:
    """The check: poison changes nothing."""
    with fresh_poison():
        assert results(make, poison=True) == clean


def test_what_was_freed_reaches_nobody(make: Make, clean: list[tuple[object, ...]]):
    unchanged(make, clean)


# -- the controls: each reads one thing that it did not write


def stale_parameters(self: Parameters, row: int, task: Any) -> None:
    """A row's parameters are written once, for whoever comes first."""
    if self.tasks[row] is None:
        HOLD(self, row, task)
    self.tasks[row] = task


def one_slot_too_many(self: Draft) -> Any:
    """Every sequence's first position is read from a free slot."""
    batch = LAUNCH(self)
    if batch is not None:
        wrong = batch.kv_indices.copy()
        wrong[batch.kv_indptr[:-1]] = int(np.setdiff1d(np.arange(224), batch.kv_indices)[-1])
        batch = replace(batch, kv_indices=wrong)
    return batch


def unwritten_tokens(self: Any, flight: Any, masks: Any) -> None:
    """Drawn tokens are not written to the table that feeds the next batch."""
    before = self._last.copy() if isinstance(self, NativeRunner) else self._last.clone()
    SAMPLE[type(self)](self, flight, masks)
    with torch.inference_mode():
        self._last[:] = before


def half_a_mask(self: LLAutomaton, out: Any) -> None:
    """A mask is written into memory of which it cleans nothing."""
    row = self._here()
    out[: len(row) // 2] = row[: len(row) // 2]


def half_of_the_slots(self: Any, batch: Any) -> Any:
    """K and V of a batch's last token are written into another slot than the one that is read."""
    if len(batch) > 8:
        slots = batch.slots.copy()
        slots[-1] = slots[0]
        batch = replace(batch, slots=slots)
    return FORWARD[type(self)](self, batch)


HOLD, LAUNCH = Parameters.hold, Draft.launch
SAMPLE = {kind: kind.sample for kind in (TorchRunner, NativeRunner)}
FORWARD = {kind: kind.forward for kind in (TorchRunner, NativeRunner)}
RUNNERS = (TorchRunner, NativeRunner)
MUTATIONS: dict[str, list[tuple[Any, str, Any]]] = {
    "parameters of a row's last owner": [(Parameters, "hold", stale_parameters)],
    "a slot that is nobody's": [(Draft, "launch", one_slot_too_many)],
    "tokens of a row's last owner": [(kind, "sample", unwritten_tokens) for kind in RUNNERS],
    "KV that was not written": [(kind, "forward", half_of_the_slots) for kind in RUNNERS],
    "a mask that is not whole": [(LLAutomaton, "mask", half_a_mask)],
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_reads_more_than_it_wrote_is_seen(
    make: Make, clean: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch, mutation: str
):
    for owner, name, other in MUTATIONS[mutation]:
        monkeypatch.setattr(owner, name, other)
    with pytest.raises((AssertionError, IndexError, RuntimeError, ValueError)):
        unchanged(make, clean)


# -- uninitialised memory

MAKERS = frozenset(("empty_like", "new_empty", "empty_strided"))
WORDS = ("written", "writes", "wrote", "write every", "stores", "covered", "initialised")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_maker(node: ast.AST) -> bool:
    """Whether a call gives uninitialised memory of some size."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    shape = node.args[0] if node.args else None
    parts = shape.elts if isinstance(shape, ast.Tuple) else node.args
    if any(isinstance(part, ast.Constant) and part.value == 0 for part in parts):
        return False  # of no elements
    return node.func.attr in MAKERS or (node.func.attr == "empty" and _root(node.func) in ("np", "numpy", "torch"))


def makers_of(tree: ast.AST) -> Iterator[tuple[Function | None, ast.stmt, ast.Call]]:
    """Calls that give uninitialised memory, with the statement and the innermost function that they stand in."""

    def walk(node: ast.AST, inside: Function | None, statement: Any) -> Iterator[Any]:
        for child in ast.iter_child_nodes(node):
            function = child if isinstance(child, Function) else inside
            here = child if isinstance(child, ast.stmt) else statement
            if is_maker(child):
                yield function, here, child
            yield from walk(child, function, here)

    return walk(tree, None, None)


def has_reason(lines: list[str], function: Function | None, call: ast.Call) -> bool:
    """A comment in its lines or in the five above, or a word in the function's description."""
    comments = [line.partition("#")[2] for line in lines[max(0, call.lineno - 6) : call.end_lineno]]
    described = ast.get_docstring(function) or "" if function is not None else ""
    return any(word in text for word in WORDS for text in (*comments, described))


def is_covered(function: Function | None, statement: ast.stmt) -> bool:
    """Below, the memory (or a part of it under another name) is handed to a call (a kernel, `out=`), or stored into; or
    it is given to the caller, whose business it then is."""
    if isinstance(statement, ast.Return):
        return True
    if not isinstance(statement, ast.Assign) or function is None:
        return False
    names = set().union(*map(_names, statement.targets))
    below = [node for node in ast.walk(function) if getattr(node, "lineno", 0) > (statement.end_lineno or 0)]
    for node in below:
        if isinstance(node, ast.Assign) and names & _names(node.value):
            names = names.union(*map(_names, node.targets))
    stored = [t for node in below if isinstance(node, ast.Assign) for t in node.targets for t in ast.walk(t)]
    if any(isinstance(t, ast.Subscript) and _root(t) in names for t in stored):
        return True
    if any(isinstance(node, ast.Return) and node.value and names & _names(node.value) for node in below):
        return True
    calls = [node for node in below if isinstance(node, ast.Call)]
    given = [arg for node in calls for arg in (*node.args, *(word.value for word in node.keywords))]
    return any(names & _names(arg) for arg in given)


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def complaints(name: str, source: str) -> list[str]:
    """The check: uninitialised memory without a stated reason, or that nothing writes."""
    lines, found = source.splitlines(), []
    for function, statement, call in makers_of(ast.parse(source)):
        if not has_reason(lines, function, call):
            found.append(f"{name}:{call.lineno}: no reason is stated")
        if not is_covered(function, statement):
            found.append(f"{name}:{call.lineno}: nothing writes it")
    return found


def test_uninitialised_memory_has_a_reason_and_a_covering_write():
    files = [file for part in ("frontend", "runtime", "kernels") for file in sorted((ROOT / part).rglob("*.py"))]
    texts = {str(file.relative_to(ROOT)): text for file in files if "empty" in (text := file.read_text("utf-8"))}
    found = [each for name, text in texts.items() for each in complaints(name, text)]
    assert not found, "\n".join(found)
    assert sum(1 for text in texts.values() for _ in makers_of(ast.parse(text))) > 20  # they are there


def body(*lines: str) -> str:
    return "\n    ".join(("def f(n, x):", *lines)) + "\n"


SOURCES = {
    "no reason": body("y = np.empty(n)", "y[:] = 0", "return y"),
    "no reason, of a tensor": body("y = x.new_empty((3, 4))", "fill(y)", "return y"),
    "nothing writes it": body("y = np.empty(n)  # covered, it says", "return 1"),
    "what is given back is another": body("y = torch.empty_like(x)  # covered, it says", "x[0] = 1", "return x"),
    "given on at once": body("use(torch.empty(n))  # covered, it says"),
    "a reason far above": "# covered\n\n\n\n\n" + body("a = 1", "y = np.empty(n)", "y[:] = a"),
    "outside of a function": "y = np.empty(3)  # covered, it says\n",
}


@pytest.mark.parametrize("mutation", SOURCES)
def test_the_walk_finds_what_it_is_for(mutation: str):
    assert complaints("x.py", SOURCES[mutation])


@pytest.mark.parametrize("write", ["for i in x:\n        y[i] = i", "kernel[(1,)](x, y)", "np.sum(x, out=y)"])
def test_the_walk_passes_what_is_right(write: str):
    assert complaints("x.py", body("y = np.empty(n)  # covered by the next line", write, "return y")) == []
