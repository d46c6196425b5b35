"""An explanation as text, in the manner of a database's EXPLAIN ANALYZE.

In: an `Explanation`. Out: lines of at most `width` columns: plain, or as `rich` text for a terminal. "*" marks the
critical path, "?" what the backend did not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ramet.frontend.explain_tree import Row, tree
from ramet.frontend.explained import Explanation, Op, Segment

if TYPE_CHECKING:
    from rich.text import Text

Piece = tuple[str, str]  # text, style
Line = list[Piece]
Names = Mapping[str, str]  # operations in a few words, by id

_TIMES = (("queue", 8), ("first", 8), ("time", 8))
_ACTUAL = (("prompt", 7), ("cached", 7), ("gen", 6), ("comp", 6), ("steps", 10), *_TIMES)
_EXPECTED = (("prompt", 9), ("shared", 9), ("gen", 8), ("steps", 12))
_CALLS = ("gen", "select", "score")
LEAST_ROOM = 24  # columns of the tree
_LEAST = 0.001  # seconds of a wait that is worth a line
PHASES = {
    "wait": "waiting for others",
    "python": "Python",
    "send": "on the way",
    "queue": "queue",
    "memory": "KV memory",
    "prefill": "prefill",
    "decode": "decode",
    "busy": "in the backend",
    "host": "host calls",
}


def plain(shown: Explanation, width: int = 100) -> str:
    """Lines of text."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines(shown, width)) + "\n"


def coloured(shown: Explanation, width: int) -> Text:
    """Lines for a terminal."""
    from rich.text import Text

    return Text("\n").join(Text.assemble(*line) for line in lines(shown, width))


def lines(shown: Explanation, width: int) -> Iterator[Line]:
    """Heading, tree, totals."""
    yield from _heading(shown, width)
    yield []
    yield from _table(shown, width)
    yield []
    yield from _totals(shown, width)


# --- heading ---


def _heading(shown: Explanation, width: int) -> Iterator[Line]:
    planned = shown.state == "planned"
    took = f" in {seconds(shown.totals.seconds)}" if shown.state == "done" else ""
    state = "" if planned else f": {shown.state}{took}"
    more = [shown.model] if shown.model else []
    more += [f"seed {shown.seed}"] if shown.seed is not None else []
    title = f"{'EXPLAIN' if planned else 'EXPLAIN ANALYZE'} {shown.name}{state}"
    yield [(title, "bold"), (cut("".join(f" · {part}" for part in more), width - len(title)), "dim")]
    if shown.error:
        yield from _wrapped(f"error: {shown.error}", width, "red", "  ")
    for note in shown.notes:
        yield from _wrapped(note, width, "yellow", "  ")


# --- the tree ---


def _table(shown: Explanation, width: int) -> Iterator[Line]:
    columns = list(_EXPECTED if shown.state == "planned" else _ACTUAL)
    if shown.state != "planned" and any(op.guess is not None for op in shown.ops):
        columns.insert(3, ("(est)", 6))
    for name in ("first", "queue", "steps", "comp"):  # what a narrow terminal has no room for
        if width - 2 - sum(size for _, size in columns) < LEAST_ROOM:
            columns = [column for column in columns if column[0] != name]
    room = max(width - 2 - sum(size for _, size in columns), LEAST_ROOM)
    head = "".join(name.rjust(size) for name, size in columns)
    yield [("  " + "operation".ljust(room) + head, "bold")]
    names = names_of(shown)
    for row, indent, last in _walk(tree(shown), ""):
        stem = indent + ("└─ " if last else "├─ ")
        below = indent + ("   " if last else "│  ")
        label, style = _label(row)
        figures = _figures(row.op, columns) if row.op is not None else ""
        mark = ("* ", "bold magenta") if row.critical else ("  ", "")
        if figures.strip():
            yield [mark, (stem, "dim"), (cut(label, room - len(stem)).ljust(room - len(stem)), style), (figures, "")]
        else:
            yield [mark, (stem, "dim"), (cut(label, width - 2 - len(stem)), style)]
        children = bool(row.children)
        for note in _notes(row.op, names):
            yield from _wrapped(note, width, "yellow", "  " + below + ("│  " if children else "   "))


def _walk(rows: Sequence[Row], indent: str) -> Iterator[tuple[Row, str, bool]]:
    for index, row in enumerate(rows):
        last = index == len(rows) - 1
        yield row, indent, last
        yield from _walk(row.children, indent + ("   " if last else "│  "))


def _label(row: Row) -> Piece:
    if row.more:
        made = sum(op.generated or 0 for op in row.hidden)
        longest = max((op.seconds or 0.0 for op in row.hidden), default=0.0)
        cost = f": {made} generated, longest call {seconds(longest)}" if made else ""
        return f"… {row.more} more branches{cost}", "dim"
    if row.branch is not None:
        item = f" {one_line(row.branch.title)!r}" if row.branch.title else ""
        return f"branch {row.branch.seq.rpartition('.')[2]}{item}", "cyan"
    if row.op is None:
        return f"text {row.text!r}", "dim"
    op = row.op
    state = "" if op.status in ("done", "planned") or op.kind in ("fork", "text") else f" ({op.status})"
    return f"{op.label}{state}", "red" if op.status == "failed" else "bold" if op.kind in _CALLS else ""


def _figures(op: Op, columns: Sequence[tuple[str, int]]) -> str:
    if op.kind == "put":
        return seconds(op.seconds).rjust(sum(size for _, size in columns)) if op.status != "planned" else ""
    if op.kind not in _CALLS:
        return ""
    guess = op.guess
    if op.status == "planned":
        assert guess is not None, "a call that is planned is estimated"
        steps = f"{guess.begin:.0f}..{guess.end:.0f}"
        cells = {"prompt": f"{guess.prompt:.0f}", "shared": f"{guess.shared:.0f}", "gen": f"{guess.generated:.0f}"}
        return "".join((cells | {"steps": steps})[name].rjust(size) for name, size in columns)
    known = op.first_step is not None and op.last_step is not None
    cells = {
        "prompt": count(op.prompt),
        "cached": count(op.cached),
        "gen": count(op.generated),
        "(est)": f"({guess.generated:.0f})" if guess is not None else "",
        "comp": count(op.computed),
        "steps": f"{op.first_step}..{op.last_step}" if known else "?",
        "queue": seconds(op.queued),
        "first": seconds(op.first_token),
        "time": seconds(op.seconds),
    }
    return "".join(" " + cells[name].rjust(size - 1) for name, size in columns)


def _notes(op: Op | None, names: Names) -> Iterator[str]:
    """What is out of the ordinary."""
    if op is None:
        return
    if op.error:
        yield f"failed: {one_line(op.error)}"
    told = []
    if op.forced:
        told.append(f"{op.forced} tokens forced")
    if op.recomputed or op.retractions:
        told.append(f"{count(op.recomputed)} tokens computed again, after {count(op.retractions)} retractions")
    if op.memory and op.memory >= _LEAST:
        told.append(f"{seconds(op.memory)} without KV memory")
    if told:
        yield ", ".join(told)
    waits = waited(op)
    if waits and op.kind != "put":
        yield "waited " + ", ".join(f"{seconds(s.end - s.begin)} {_for(s, names)}" for s in waits)


def waited(op: Op) -> list[Segment]:
    """The waits that are worth a mention; those for the same operation are one."""
    found: dict[tuple[str, str], Segment] = {}
    for segment in op.segments:
        if segment.phase in ("wait", "python"):
            key = (segment.phase, segment.on)
            known = found.get(key)
            end = segment.end if known is None else known.end + segment.seconds
            found[key] = Segment(segment.phase, segment.begin if known is None else known.begin, end, segment.on)
    return [segment for segment in found.values() if segment.seconds >= _LEAST]


def _for(segment: Segment, names: Names) -> str:
    if segment.phase == "python":
        return "for Python"
    return f"for {names.get(segment.on, segment.on)}" if segment.on else "for a value"


def names_of(shown: Explanation) -> Names:
    """Operations in a few words, by id."""
    return {op.id: f"{op.label} ({op.id})" for op in shown.ops}


# --- totals ---


def _totals(shown: Explanation, width: int) -> Iterator[Line]:
    for name, said in facts(shown):
        first = True
        for line in _wrapped(said, width - 15, "", ""):
            yield [((name if first else "").ljust(15), "bold"), *line]
            first = False
    if shown.estimate is not None and not shown.estimate.trouble and shown.state != "planned":
        yield []
        yield from _compared(shown)


def facts(shown: Explanation) -> Iterator[tuple[str, str]]:
    """The totals in words: heading, sentence."""
    totals, estimate = shown.totals, shown.estimate
    if estimate is not None and estimate.trouble:
        yield "estimate", f"none: {estimate.trouble}"
    elif estimate is not None and shown.state == "planned":
        runs = f"learned from {estimate.learned} runs" if estimate.learned else "nothing learned yet: guesses"
        most = "no limit" if estimate.generated_max is None else f"{estimate.generated_max} at most"
        if not estimate.calls:
            yield "calls", "none that is known before the graph break"
            return
        yield "calls", f"{estimate.calls:g}, up to {estimate.width} at a time ({runs})"
        yield "tokens", f"{estimate.prompt} prompt ({estimate.shared} shared), {estimate.generated} generated ({most})"
        yield "KV peak", f"{estimate.peak_kv} tokens"
        yield "decode steps", f"{estimate.critical_path} on the critical path"
    if shown.state == "planned":
        return
    hosts = f", {totals.hosts} host calls" if totals.hosts else ""
    failed = f", {totals.failed} operations failed" if totals.failed else ""
    yield "calls", f"{totals.calls}{hosts}{failed}"
    again = f" ({totals.recomputed} again, {count(totals.retractions)} retractions)" if totals.recomputed else ""
    yield (
        "tokens",
        f"{count(totals.prompt)} prompt ({count(totals.cached)} cached), {count(totals.generated)} generated "
        f"({count(totals.forced)} forced), {count(totals.computed)} computed{again}",
    )
    if totals.distinct and totals.computed is not None:
        yield "distinct", f"{totals.distinct} tokens; computed / distinct = {totals.computed / totals.distinct:.2f}"
    if totals.bound is not None and totals.steps:
        yield (
            "decode steps",
            f"{totals.steps} taken; {totals.bound} on the longest chain of calls (lower bound)",
        )
    path = sum(share.path for share in shown.shares)
    if path > 0:
        found = sorted(((s.path / path, PHASES[s.phase]) for s in shown.shares), reverse=True)
        yield "critical path", ", ".join(f"{phase} {100 * part:.0f} %" for part, phase in found if part >= 0.005)


def _compared(shown: Explanation) -> Iterator[Line]:
    """Expected beside actual; where a plan ends in a graph break, of the calls before it alone."""
    estimate, totals = shown.estimate, shown.totals
    assert estimate is not None, "there is something to compare with"
    rows: list[tuple[str, float, float | None]] = [
        ("calls", estimate.calls, totals.calls),
        ("prompt tokens", estimate.prompt, totals.prompt),
        ("shared, cached", estimate.shared, totals.cached),
        ("generated", estimate.generated, totals.generated),
        ("decode steps", estimate.critical_path, totals.bound),
    ]
    if not estimate.complete:
        same = [op for op in shown.ops if op.guess is not None]
        if not same:
            return
        rows = [
            ("calls", estimate.calls, len(same)),
            ("prompt tokens", estimate.prompt, total(same, lambda op: op.prompt)),
            ("shared, cached", estimate.shared, total(same, lambda op: op.cached)),
            ("generated", estimate.generated, total(same, lambda op: op.generated)),
        ]
        yield [("of the calls before the graph break, behind which nothing was expected:", "yellow")]
    yield [("".ljust(15) + "expected".rjust(10) + "actual".rjust(10) + "error".rjust(10), "bold")]
    for name, guess, actual in rows:
        error = f"{100 * (guess - actual) / actual:+.0f} %" if actual else "0 %" if actual == guess else "?"
        known = "?" if actual is None else f"{actual:g}"
        yield [(name.ljust(15) + f"{guess:g}".rjust(10) + known.rjust(10) + error.rjust(10), "")]


def total(ops: Sequence[Op], of: Callable[[Op], int | None]) -> int | None:
    """The sum; None when one is unknown, or there is none."""
    known = [value for op in ops if (value := of(op)) is not None]
    return sum(known) if ops and len(known) == len(ops) else None


# --- words ---


def count(value: int | None) -> str:
    """A number; "?" when it is not known."""
    return "?" if value is None else str(value)


def seconds(value: float | None) -> str:
    """A time with its unit, in at most 7 characters."""
    if value is None:
        return "?"
    if value >= 99.95:
        return f"{value:.0f} s"
    if value >= 0.9995:
        return f"{value:.3g} s"
    if value >= 0.0009995:
        return f"{1e3 * value:.3g} ms"
    return f"{1e6 * value:.0f} us" if value >= 5e-7 else "0"


def one_line(text: str) -> str:
    """Without breaks, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def cut(text: str, room: int) -> str:
    """At most `room` characters of it, on one line."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= room else line[: max(room - 1, 0)] + "…"


def _wrapped(text: str, width: int, style: str, indent: str) -> Iterator[Line]:
    line = ""
    room = max(width - len(indent), 20)
    for word in one_line(text).split(" "):
        while len(word) > room:
            if line:
                yield [(indent, "dim"), (line, style)]
                line = ""
            yield [(indent, "dim"), (word[:room], style)]
            word = word[room:]
        if line and len(line) + 1 + len(word) > room:
            yield [(indent, "dim"), (line, style)]
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        yield [(indent, "dim"), (line, style)]
