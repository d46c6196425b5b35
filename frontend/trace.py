"""A run as a tree: what was recorded, where, and how it went.

In: the record of a run, at any time. Out: rows (plain JSON data), a plain text tree, a self-contained HTML page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ramet.frontend.entries import Entry, Seq
from ramet.frontend.execution import Execution
from ramet.frontend.ir import Fork, Join, Role, Select, Tools, Usage

SHOWN = 60  # characters of a text in the tree


class Trace:
    """A view of a run; reading it never waits."""

    def __init__(self, execution: Execution) -> None:
        self._run = execution

    def rows(self) -> list[dict[str, Any]]:
        """One row per operation, in the order of recording within each sequence: op, seq, kind, var, status, text,
        where, and for generations and choices the token counts, seconds and steps of their meta."""
        return [_row(entry) for seq in self._sequences(self._run.record.root) for entry in shown(seq)]

    def json(self) -> str:
        """The rows as JSON Lines."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())

    def tree(self) -> str:
        """A plain text tree of branches and operations."""
        return "\n".join([title(self._run), *self._lines(self._run.record.root, "")])

    def html(self) -> str:
        """A self-contained page; every text is escaped."""
        from ramet.frontend.page import page

        return page(self._run)

    def _sequences(self, seq: Seq) -> Iterator[Seq]:
        yield seq
        for entry in list(seq.entries):
            for child in self._children(entry):
                yield from self._sequences(child)

    def _children(self, entry: Entry) -> list[Seq]:
        return [self._run.record.seqs[path] for path in entry.op.into] if isinstance(entry.op, Fork) else []

    def _lines(self, seq: Seq, indent: str) -> Iterator[str]:
        entries = _folded(shown(seq))
        for index, (role, entry) in enumerate(entries):
            last = index == len(entries) - 1
            yield f"{indent}{'└─ ' if last else '├─ '}{_line(entry, role)}"
            deeper = indent + ("   " if last else "│  ")
            children = self._children(entry)
            for number, child in enumerate(children):
                final = number == len(children) - 1
                yield f"{deeper}{'└─ ' if final else '├─ '}{_branch(child)}"
                yield from self._lines(child, deeper + ("   " if final else "│  "))


def title(run: Execution) -> str:
    """What the run is, how far it is and what it took, in one line."""
    outcome = run.outcome
    state = "running" if not outcome.done() else "failed" if outcome.exception() is not None else "done"
    metas = [entry.meta for entry in list(run.record.entries.values()) if entry.meta is not None]
    tokens = sum(meta.completion_tokens for meta in metas)
    return f"{run.name}: {state}, {len(metas)} call{'s' * (len(metas) != 1)}, {tokens} generated tokens"


def usage_so_far(run: Execution) -> Usage:
    """Sums over the calls that have finished."""
    metas = [entry.meta for entry in list(run.record.entries.values()) if entry.meta is not None]
    return Usage(
        calls=len(metas),
        prompt_tokens=sum(meta.prompt_tokens for meta in metas),
        cached_tokens=sum(meta.cached_tokens for meta in metas),
        forced_tokens=sum(meta.forced_tokens for meta in metas),
        generated_tokens=sum(meta.completion_tokens for meta in metas),
    )


def shown(seq: Seq) -> list[Entry]:
    """The operations of a sequence that say something."""
    return [entry for entry in list(seq.entries) if entry.kind != "close"]


def _folded(entries: list[Entry]) -> list[tuple[str, Entry]]:
    """(role, operation): a message of one operation is one line; all others stand by themselves, with role ""."""
    out: list[tuple[str, Entry]] = []
    index = 0
    while index < len(entries):
        begin, *rest = entries[index : index + 3]
        if len(rest) == 2 and _is_message(begin, rest[0], rest[1]):
            assert isinstance(begin.op, Role)
            out.append((begin.op.role, rest[0]))
            index += 3
        else:
            out.append(("", begin))
            index += 1
    return out


def _is_message(begin: Entry, content: Entry, end: Entry) -> bool:
    if not (isinstance(begin.op, Role) and begin.op.edge == "begin" and isinstance(end.op, Role)):
        return False
    return content.kind in ("text", "gen", "select") and begin.error is None and end.error is None


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "op": entry.id,
        "seq": entry.seq.path,
        "kind": entry.kind,
        "var": entry.var,
        "status": entry.status,
        "text": entry.value_text() if entry.kind == "put" else entry.known_text(),
        "where": entry.where,
        "error": str(entry.error) if entry.error is not None else "",
    }
    if entry.meta is not None:
        meta = entry.meta
        row |= {
            "finish_reason": meta.finish_reason,
            "prompt_tokens": meta.prompt_tokens,
            "cached_tokens": meta.cached_tokens,
            "completion_tokens": meta.completion_tokens,
            "first_step": meta.first_step,
            "last_step": meta.last_step,
            "seconds": meta.seconds,
        }
    return row


def label(entry: Entry) -> str:
    """What the operation is, in a few words."""
    op = entry.op
    if isinstance(op, Role):
        return f"{op.role} {op.edge}"
    if isinstance(op, Tools):
        return f"tools {', '.join(tool.name for tool in op.tools)}"
    if isinstance(op, Fork):
        return f"fork into {len(op.into)}"
    if isinstance(op, Join):
        return f"join of {len(op.branches)}"
    if isinstance(op, Select):
        return f"select {entry.var} of {len(op.choices)}".replace("  ", " ")
    return f"{'call' if entry.kind == 'put' else entry.kind} {entry.var}".strip()


def _cost(entry: Entry) -> str:
    if entry.meta is None:
        return ""
    return f"[{entry.meta.completion_tokens} tokens, {entry.meta.finish_reason}]"


def _line(entry: Entry, role: str) -> str:
    """One line; `role` when the operation is a whole message."""
    said = label(entry) if not role else role if entry.kind == "text" else f"{role}: {label(entry)}"
    if entry.kind in ("role", "fork"):
        return said + (" failed" if entry.status == "failed" else "")
    if entry.error is not None:
        return f"{said} failed: {short(str(entry.error))}"
    text = entry.value_text() if entry.kind == "put" else entry.known_text()
    state = f" {entry.status}" if entry.status in ("recorded", "running") and entry.kind != "text" else ""
    cost = f" {_cost(entry)}" if entry.meta is not None else ""
    return f"{said}{state} {short(text)!r}{cost}"


def _branch(seq: Seq) -> str:
    item = "" if seq.item is None else f" {short(str(seq.item))}"
    return f"branch {seq.path.rsplit('.', 1)[-1]}{item}"


def short(text: str) -> str:
    """At most as much of a text as fits a line."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
