"""A run as a web page: what was said, where it branched, and in which steps it was computed.

In: the record of a run, at any time. Out: one self-contained HTML page without scripts; every text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from ramet.frontend.entries import Entry, Seq
from ramet.frontend.execution import Execution
from ramet.frontend.ir import Fork, Role, Select
from ramet.frontend.trace import label, short, shown, title

LANES = 400  # calls that the chart of steps shows at most
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#1f2328;background:#fff}
h1{font-size:1.3rem;margin:0}h2{font-size:1rem;margin:1.5rem 0 .4rem}p{margin:.2rem 0;color:#59636e}
.lane{display:flex;align-items:center;font-size:12px;line-height:1.35}
.lane>span{flex:0 0 13rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;color:#59636e;padding-right:.6rem}
.lane>div{flex:1;position:relative;height:.75em;background:#f3f5f7}
.lane i{position:absolute;top:0;bottom:0;min-width:3px;border-radius:2px;background:#3b8f5a}
.block{margin:.35rem 0;padding:.3rem .6rem;border-left:3px solid #d1d9e0;white-space:pre-wrap;overflow-wrap:anywhere}
.block>b{display:block;font-size:11px;letter-spacing:.04em;text-transform:uppercase;color:#59636e}
.user{border-color:#6a9fd8;background:#f3f8fd}.assistant{border-color:#5aa876;background:#f6fbf7}
.system,.developer,.tool{background:#f8f8f8}
.gen,.select{background:#cfeeda;border-radius:3px}.join{background:#e7e3f7;border-radius:3px}
.running,.recorded{background:#fbeeb5}.failed{background:#f9d6d6;color:#8a1f1f}
small{color:#59636e}.branches{display:flex;flex-wrap:wrap;gap:.6rem;margin:.4rem 0 .4rem .8rem;align-items:flex-start}
details{flex:1 1 17rem;min-width:0;border:1px solid #d1d9e0;border-radius:6px;padding:.2rem .6rem}
summary{cursor:pointer;font-weight:600;font-size:13px;overflow-wrap:anywhere}
"""


def page(run: Execution) -> str:
    """The page of a run, as far as it has come."""
    calls = [entry for entry in list(run.record.entries.values()) if entry.kind in ("gen", "select")]
    name = html.escape(title(run))
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{name}</title><style>{STYLE}</style></head>\n<body><h1>{name}</h1>{_summary(calls)}{_chart(calls)}"
        f"<h2>Text and branches</h2>{_sequence(run, run.record.root)}</body></html>\n"
    )


def _summary(calls: Sequence[Entry]) -> str:
    metas = [entry.meta for entry in calls if entry.meta is not None]
    prompt, cached = sum(m.prompt_tokens for m in metas), sum(m.cached_tokens for m in metas)
    hint = "Point at a generation, a choice or a role to see its place in the program and its cost."
    return f"<p>{prompt} prompt tokens, {cached} of them cached</p><p>{hint}</p>"


def _chart(calls: Sequence[Entry]) -> str:
    """One lane per call, from its first to its last step."""
    lanes = [(entry, entry.meta) for entry in calls if entry.meta is not None and entry.meta.first_step >= 0]
    if not lanes:
        return ""
    first = min(meta.first_step for _, meta in lanes)
    steps = max(meta.last_step for _, meta in lanes) - first + 1
    out = [f"<h2>Steps {first} to {first + steps - 1} of the engine</h2>"]
    for entry, meta in lanes[:LANES]:
        left, width = (meta.first_step - first) / steps, (meta.last_step - meta.first_step + 1) / steps
        bar = f"<i style='left:{left:.2%};width:{width:.2%}' title='{_tip(entry)}'></i>"
        out.append(f"<div class='lane'><span>{html.escape(_lane(entry))}</span><div>{bar}</div></div>")
    if len(lanes) > LANES:
        out.append(f"<p>and {len(lanes) - LANES} more</p>")
    return "".join(out)


def _lane(entry: Entry) -> str:
    items = []
    seq: Seq | None = entry.seq
    while seq is not None and seq.parent is not None:
        items.append(_name(seq))
        seq = seq.parent
    return " / ".join([*reversed(items), entry.var or entry.kind])


def _name(seq: Seq) -> str:
    return seq.path.rsplit(".", 1)[-1] if seq.item is None else short(str(seq.item))


def _sequence(run: Execution, seq: Seq) -> str:
    out: list[str] = []
    role, content = "", [""]

    def close(ended: bool) -> None:
        nonlocal role
        inside = "".join(content)
        if inside:
            out.append(f"<div class='block {role}'>{inside}</div>")
        content.clear()
        role = "" if ended else role

    for entry in shown(seq):
        if isinstance(entry.op, Role):
            close(True)
            if entry.op.edge == "begin":
                role = entry.op.role
                content.append(f"<b title='{_tip(entry)}'>{html.escape(role)}{_trouble(entry)}</b>")
        elif isinstance(entry.op, Fork):
            close(False)
            out.append(_fork(run, entry, entry.op))
        else:
            content.append(_span(entry))
    close(True)
    return "".join(out)


def _fork(run: Execution, entry: Entry, op: Fork) -> str:
    branches = [run.record.seqs[path] for path in op.into]
    cards = [
        f"<details open><summary>{html.escape(_name(seq))}</summary>{_sequence(run, seq)}</details>" for seq in branches
    ]
    return f"<div class='branches' title='{_tip(entry)}'>{''.join(cards)}</div>{_trouble(entry)}"


def _span(entry: Entry) -> str:
    if entry.error is not None:
        return (
            f"<span class='failed' title='{_tip(entry)}'>{html.escape(f'{label(entry)} failed: {entry.error}')}</span>"
        )
    if entry.kind == "put":
        return f"<small title='{_tip(entry)}'>{html.escape(f'{label(entry)} → {entry.value_text()!r}')}\n</small>"
    text = html.escape(entry.known_text()) or ("…" if entry.status in ("recorded", "running") else "")
    return f"<span class='{entry.kind} {entry.status}' title='{_tip(entry)}'>{text}</span>"


def _trouble(entry: Entry) -> str:
    return f" <span class='failed'>{html.escape(str(entry.error))}</span>" if entry.error is not None else ""


def _tip(entry: Entry) -> str:
    """What is shown when one points at it."""
    lines = [f"{entry.id}  {label(entry)}  {entry.where}".rstrip()]
    if isinstance(entry.op, Role):
        lines.append(entry.known_text())
    if isinstance(entry.op, Select):
        scores = entry.meta.scores if entry.meta is not None else ()
        known = [*(f"{score:.3f}" for score in scores), *[""] * len(entry.op.choices)]
        lines += [f"{known[index]} {choice!r}".strip() for index, choice in enumerate(entry.op.choices)]
    if entry.meta is not None:
        meta = entry.meta
        lines.append(f"prompt {meta.prompt_tokens} tokens, {meta.cached_tokens} cached")
        lines.append(f"generated {meta.completion_tokens} tokens, {meta.finish_reason}, {meta.seconds:.2f} s")
        lines += [f"steps {meta.first_step} to {meta.last_step}"] if meta.first_step >= 0 else []
    return html.escape("\n".join(lines), quote=True)
