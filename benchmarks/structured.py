"""What constraints cost and save: in: a model. Out: decode steps with and without jumps, masks, compilations, a load.

Steps are counts: the batches that one program took part in, at temperature 0. "off" samples every token, "exact" checks
forced text several tokens at a time and gives the same tokens, "canonical" appends it. The masks are those of all
places of ordinary texts (40 schemas that people wrote, one of 20 fields, and what was generated here), timed one by one
and by the step (structured_parts/masks.py); compilations are timed from outside, each schema a new one,
by a process that is warm. The load compares sequences that a grammar holds to some characters, or to JSON, without
any jump, with unconstrained ones of the same length, in turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import ramet as rt
from ramet.frontend import ir
from ramet.runtime.grammar.compiler import Compiler
from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.text import Tokenizer

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # for structured_parts: -P leaves it out

if TYPE_CHECKING:
    from structured_parts.masks import Course

CHARACTER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "house": {"enum": ["Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff"]},
        "blood status": {"enum": ["Pure-blood", "Half-blood", "Muggle-born"]},
        "occupation": {"enum": ["student", "teacher", "auror", "ministry of magic", "death eater"]},
        "wand": {
            "type": "object",
            "properties": {
                "wood": {"enum": ["holly", "yew", "vine", "ash", "oak"]},
                "core": {"enum": ["phoenix feather", "unicorn hair", "dragon heartstring"]},
                "length": {"type": "number", "minimum": 0, "maximum": 20},
            },
            "required": ["wood", "core", "length"],
            "additionalProperties": False,
        },
        "alive": {"type": "boolean"},
        "patronus": {"type": "string", "maxLength": 16},
    },
    "required": ["name", "house", "blood status", "occupation", "wand", "alive", "patronus"],
    "additionalProperties": False,
}
LINE = {
    "type": "object",
    "properties": {
        "description": {"type": "string", "maxLength": 40},
        "quantity": {"type": "integer", "minimum": 1, "maximum": 999},
        "unit_price": {"type": "number", "minimum": 0, "maximum": 10000},
    },
    "required": ["description", "quantity", "unit_price"],
    "additionalProperties": False,
}
INVOICE = {
    "type": "object",
    "properties": {
        "invoice_number": {"type": "string", "pattern": "^INV-[0-9]{4}$"},
        "date": {"type": "string", "format": "date"},
        "customer": {"type": "string", "maxLength": 30},
        "currency": {"enum": ["EUR", "USD", "GBP"]},
        "lines": {"type": "array", "items": LINE, "minItems": 2, "maxItems": 2},
        "total": {"type": "number", "minimum": 0, "maximum": 100000},
    },
    "required": ["invoice_number", "date", "customer", "currency", "lines", "total"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 24},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
TOOLS = (ir.Tool("get_weather_forecast", "The weather of the next days.", json.dumps(WEATHER)),)
CASES: dict[str, tuple[str, ir.Constraint | None, int]] = {
    "character JSON": ("Describe Hermione Granger as JSON.", ir.JsonSchema(json.dumps(CHARACTER)), 300),
    "tool call": ("What will the weather be in Paris for 3 days?", ir.Calls(TOOLS, "required", parallel=False), 200),
    "invoice": (
        "Write an invoice for two oak tables and four chairs as JSON.",
        ir.JsonSchema(json.dumps(INVOICE)),
        300,
    ),
    "free chat": ("Tell me about rivers.", None, 64),
}


@dataclass(slots=True)
class Outcome:
    """One program's end."""

    over: threading.Event = field(default_factory=threading.Event)
    finished: ir.Finished | None = None
    ended: ir.Ended | None = None

    def deliver(self, event: ir.Event) -> None:
        """Called by the engine's thread."""
        if isinstance(event, ir.Finished):
            self.finished = event
        elif isinstance(event, ir.Ended):
            self.ended = event
            self.over.set()

    def wait(self) -> tuple[ir.Finished, ir.Usage]:
        """Both, once the program is over."""
        self.over.wait()
        if self.finished is None or self.ended is None or self.ended.kind:
            raise SystemExit(f"a program failed: {self.ended}")
        return self.finished, self.ended.usage


def begin(
    engine: rt.Engine, prompt: str, constraint: ir.Constraint | None, sampling: ir.Sampling, jump: ir.Jump
) -> Outcome:
    """A chat of one question."""
    outcome = Outcome()
    session = engine.open(ir.Header(), outcome.deliver)
    ops: list[ir.AnyOp] = []
    if isinstance(constraint, ir.Calls):
        ops.append(ir.Tools(id="0.0", seq="0", tools=constraint.tools))
    ops.append(ir.Role(id="0.1", seq="0", role="user", edge="begin"))
    ops.append(ir.Text(id="0.2", seq="0", parts=(prompt,)))
    ops.append(ir.Role(id="0.3", seq="0", role="user", edge="end"))
    ops.append(ir.Role(id="0.4", seq="0", role="assistant", edge="begin"))
    ops.append(ir.Gen(id="0.5", seq="0", var="x", sampling=sampling, constraint=constraint, jump=jump))
    session.send(ops)
    session.end()
    return outcome


# -- figures


def jumps(engine: rt.Engine) -> tuple[list[dict[str, Any]], list[tuple[ir.Constraint, str]]]:
    """A row per case (with each kind of jump: tokens / those that were forced / steps), and the texts."""
    rows, texts = [], list[tuple[ir.Constraint, str]]()
    for name, (prompt, constraint, most) in CASES.items():
        row: dict[str, Any] = {"case": name}
        steps, seconds = dict[str, int](), dict[str, float]()
        for jump in ir.JUMPS:
            sampling = ir.Sampling(temperature=0.0, max_tokens=most)
            finished, usage = begin(engine, prompt, constraint, sampling, jump).wait()  # type: ignore[arg-type]
            row[jump] = f"{finished.meta.completion_tokens} / {finished.meta.forced_tokens} / {usage.steps}"
            steps[jump], seconds[jump] = usage.steps, finished.meta.seconds
            if constraint is not None:
                texts.append((constraint, finished.value))
        row["steps off/exact"] = steps["off"] / steps["exact"]
        row["steps off/canonical"] = steps["off"] / steps["canonical"]
        row["seconds off/canonical"] = seconds["off"] / seconds["canonical"]
        rows.append(row)
    return rows, texts


def generated(tokenizer: Tokenizer, compiler: Compiler, texts: Sequence[tuple[ir.Constraint, str]]) -> list[Course]:
    """The texts that were generated under schemas."""
    from structured_parts.masks import Course

    names = {constraint: name for name, (_, constraint, _) in CASES.items()}
    return [
        Course(names[constraint], compiler.compile(constraint).program, tuple(tokenizer.encode(text)))
        for constraint, text in dict.fromkeys(texts)
        if isinstance(constraint, ir.JsonSchema)
    ]


def compilations(compiler: Compiler, count: int) -> dict[str, float]:
    """Milliseconds from a new schema of 20 fields to its program."""
    kinds = ({"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"enum": ["a", "b"]}, {"type": "number"})
    spent = []
    for turn in range(count):
        fields = {f"field_{turn}_{k}": kinds[k % len(kinds)] for k in range(20)}
        schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
        start = time.perf_counter()
        compiler.compile(ir.JsonSchema(json.dumps(schema)))
        spent.append(1e3 * (time.perf_counter() - start))
    return {"schemas": count, "p50 ms": statistics.median(spent), "max ms": max(spent)}


def loads(tokens: int) -> dict[str, ir.Constraint | None]:
    """What the load is held to: there is a choice at nearly every place, end tokens are ignored, and no text can be
    complete before it has so many tokens, or nearly."""
    strings = {"type": "array", "items": {"type": "string"}, "minItems": tokens // 4}
    return {
        "free": None,
        "regex": ir.Regex(r"[a-zA-Z0-9 ,.;:!?()'\n-]{0,4000}"),
        "JSON": ir.JsonSchema(json.dumps(strings)),
    }


def load(engine: rt.Engine, batch: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Tokens per second of a batch of sequences of each of `loads`, every token decoded, in turns, each turn beginning
    with another; no prompt is asked twice, so nobody finds another's in the cache."""
    constraints = loads(tokens)
    rates: dict[str, list[float]] = {name: [] for name in constraints}
    for turn in range(-1, repeats):
        names = [list(constraints)[(k + turn) % len(constraints)] for k in range(len(constraints))]
        for name in names:
            sampling = ir.Sampling(temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=turn + 1)
            start = time.perf_counter()
            running = [
                begin(engine, f"{k} {turn} {name}: say a lot.", constraints[name], sampling, "off")
                for k in range(batch)
            ]
            made = sum(outcome.wait()[0].meta.completion_tokens for outcome in running)
            if turn >= 0:  # the first turn warms up
                rates[name].append(made / (time.perf_counter() - start))
    found = []
    for name, rate in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rate, rates["free"], strict=True))
        found.append({"load": name, "batch": batch, "tok/s": statistics.median(rate), "of free": ratio})
    return found


# -- output


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows for people."""
    out = Table()
    for name in rows[0]:
        out.add_column(name, justify="right")
    for row in rows:
        out.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    return out


def main() -> None:
    """Measure, print."""
    from structured_parts.masks import masks, ordinary, steps

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0 is one per core")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96, help="of each sequence of the load")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--schemas", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()

    tokenizer = load_tokenizer(hub.resolve(options.model))
    compiler = Compiler(tokenizer, eos=tokenizer.eos)
    compiler.warm()
    with rt.Engine(options.model, threads=options.threads) as engine:
        info = engine.info()
        cases, texts = jumps(engine)
        loaded = load(engine, options.batch, options.tokens, options.repeats)
    courses = [*ordinary(tokenizer, compiler), *generated(tokenizer, compiler, texts)]
    found = {
        "steps": cases,
        "masks": masks(tokenizer, courses),
        "masks of a step": steps(tokenizer, courses, options.batch),
        "compilations": compilations(compiler, options.schemas),
        "load": loaded,
    }
    compiler.close()
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    if options.json:
        print(json.dumps({"model": info["model"], "dtype": info["dtype"], "machine": machine, **found}, indent=2))
        return
    console = Console()
    console.print(f"{info['model']}, {info['dtype']}, {machine}", highlight=False)
    for name, rows in found.items():
        console.print(name + (" (tokens / forced / steps)" if name == "steps" else ""))
        console.print(table(rows if isinstance(rows, list) else [rows]))


if __name__ == "__main__":
    main()
